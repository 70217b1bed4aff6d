"""export, verify, inspect: what is done with adapter files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from finetune.choices import Dtype, Layout, ReaderName
from finetune.cli.options import AsJson, Output, Quiet, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from finetune.errors import Action
    from finetune.files.inspection import Inspection
    from finetune.proof.verify import Report

For = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        help=f"Programs that must read the file correctly: {', '.join(get_args(ReaderName))}. May be repeated, or "
        "separated by commas.",
        show_default="those whose key names it uses",
    ),
]
_SHOWN = 8  # lines of a list on the one screen; --json has all


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(verify)
    app.command()(inspect)


def export(
    source: Annotated[
        Path, typer.Option("--from", help="A LoRA file, a PEFT folder, a run's folder or a step of it (RUN@500).")
    ],
    layout: Annotated[
        Layout, typer.Option(help="universal: one file that every program reads. merged: a whole pipeline.")
    ] = "universal",
    out: Annotated[
        Path | None, typer.Option(help="New file; for peft and merged a new folder.", show_default="NAME-LAYOUT")
    ] = None,
    base: Annotated[str, typer.Option(help="Base model to verify the result in.", show_default="not verified")] = "",
    dtype: Annotated[Dtype, typer.Option(help="Number format of the file. float32 loses nothing.")] = "float32",
    readers: For = None,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter to another layout.

    Converts LoRA files from any trainer; give --base to verify the result.
    """
    from finetune import api

    target, off, proved = api.export(source, layout, out, base, dtype, reader_names(readers))
    output = Output(as_json)
    output.json({"path": str(target), "layout": layout, "dtype": dtype, "difference": off, "verified": proved})
    if layout == "merged":
        output.result(f"{target}: the merged pipeline; rounding to {dtype} lost {off:.2%} of the change")
    else:
        output.result(f"{target}: written and read back; differs from its source by {off:.1e}")


def verify(
    file: Annotated[
        Path, typer.Argument(help="A LoRA file or PEFT folder, from any trainer, or a step of a run (RUN@500).")
    ],
    base: Annotated[
        str, typer.Option(help="Base model to load the file into.", show_default="the one that the file names")
    ] = "",
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run that trained it, to compare the file with.")
    ] = None,
    base_bits: Annotated[
        int | None,
        number("bits", help="4: load the denoiser in 4 bits (about 1/4 of the memory).", show_default="in full"),
    ] = None,
    readers: For = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Verify an adapter file in a freshly loaded base.

    Every weight must be used, and the programs that the file is meant for must read it correctly: those of --for, or
    those whose key names it uses. Stock diffusers is run; the others are checked by their loading rules. Exit code 0:
    verified; 5: it fails; 2: it cannot be read at all (cut short, pickled, not a safetensors file).
    """
    from finetune import api
    from finetune.errors import VerifyError

    report, output = api.verify(file, base, run, base_bits, reader_names(readers)), Output(as_json, quiet)
    output.json(asdict(report))
    if output.details:
        _show_report(report)
    output.result("verified" if report.ok else "NOT verified")
    if not report.ok:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise VerifyError(f"{file}: {report.problems[0]}{more}", *_advice(report))


def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file, PEFT folder, run's folder or a step of it (RUN@500).")],
    as_json: AsJson = False,
) -> None:
    """Show what an adapter file holds. No base is needed."""
    from finetune.files.inspection import inspect as look

    found = look(file)
    Output(as_json).json(asdict(found))
    if not as_json:
        _show_inspection(found)


def reader_names(written: "Sequence[str] | None") -> list[ReaderName]:
    """Raises InputError for a program that is not known."""
    from finetune.errors import InputError

    words = [word.strip().lower() for text in written or () for word in text.split(",")]
    known = get_args(ReaderName)
    strange = [word for word in words if word not in known]
    if strange:
        raise InputError(f"--for: no program {strange[0]!r} is known", f"one of {', '.join(known)}")
    return [name for name in known if name in words]


def _advice(report: "Report") -> "tuple[str] | tuple[str, Action]":
    from finetune.errors import action
    from finetune.files.kinds import advice_on_file

    if any("made for" in problem for problem in report.problems):
        return ("verify it with the base it was made for",)
    if any("changed after" in problem for problem in report.problems) or report.live is not None:
        return "export it again from the run that trained it", action("export", source="RUN")
    if report.repairable:
        return "write it again in names and scales that its readers agree on", action("export", source=report.file)
    right = [one.program for one in report.readers.values() if one.right]
    if report.readable and right:
        return (f"use it in {' or '.join(right)}",)
    return (advice_on_file(report.problems),)


def _output(change: float | None) -> str:
    return "" if change is None else f", output by {change:.2%}"


def _show_report(report: "Report") -> None:
    rows = [
        ("layout", report.layout),
        ("modules", f"{report.hit} of {report.expected} expected were found"),
        ("unused keys", str(len(report.unused))),
        ("rank", _counts(report.ranks)),
        ("alpha", _counts(report.alphas)),
    ]
    rows += [
        (e.component, f"{e.modules} modules changed: weights by {e.weight:.2%}{_output(e.output)}")
        for e in report.effects
    ]
    rows += [
        ("stock diffusers", _off(report.stock, "did not load it")),
        ("right in", ", ".join(one.program for one in report.readers.values() if one.right) or "no program known here"),
        ("trained model", _off(report.live, "not compared; name its run with --run")),
    ]
    table = _table(f"{report.file} on {report.base}", rows)
    _print(table, [f"problem: {p}" for p in report.problems[:_SHOWN]], len(report.problems) - _SHOWN)
    _print(None, [f"note: {f}" for f in report.findings[:_SHOWN]], len(report.findings) - _SHOWN)


def _size(norms: "Sequence[float | None]") -> str:
    """Of a whole component's change, where it does not depend on the base."""
    told = [norm for norm in norms if norm is not None]
    return f", change {sum(norm * norm for norm in told) ** 0.5:.3g}" if len(told) == len(norms) else ""


def _show_inspection(found: "Inspection") -> None:
    norms = {c: [p.norm for p in found.modules if p.module.startswith((c, f"lora_{c[:2]}"))] for c in found.components}
    rows = [
        ("layout", found.layout),
        ("method", found.method),
        ("size", f"{found.size_bytes / 1e6:.2f} MB, {found.tensors} tensors, {_counts(found.dtypes)}"),
        ("rank", _counts(found.ranks)),
        ("rank as trained", _counts(found.trained_ranks) if found.trained_ranks.keys() != found.ranks.keys() else ""),
        *((c, f"{n} modules{_size(norms[c])}") for c, n in found.components.items()),
        ("trigger", found.trigger),
        ("base", " ".join(filter(None, (found.base, found.base_version)))),
        ("licence", found.license),
        ("recipe", f"{len(found.recipe.splitlines())} lines (--json shows them)" if found.recipe else ""),
        ("payload sha256", found.payload_sha256),
        ("", "the same as stated" if found.stated_sha256 == found.payload_sha256 else f"stated {found.stated_sha256}")
        if found.stated_sha256
        else ("", ""),
        ("metadata", f"{len(found.metadata)} entries"),
    ]
    table = _table(found.file, [(what, told) for what, told in rows if told])
    _print(table, [f"problem: {p}" for p in found.problems[:_SHOWN]], len(found.problems) - _SHOWN)


def _table(title: str, rows: list[tuple[str, str]]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, told in rows:
        table.add_row(what, told)
    return table


def _print(table: "Table | None", lines: list[str], more: int) -> None:
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    if table is not None:
        console.print(table)
    for line in lines + ([f"... and {more} more; --json has all"] if more > 0 else []):
        console.print(line, soft_wrap=True)


def _counts(values: dict[str, int]) -> str:
    """One value alone, several with how often each occurs."""
    return "".join(values) if len(values) == 1 else ", ".join(f"{v} ({n}x)" for v, n in values.items())


def _off(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"the same; the worst module differs by {value:.1e}"
