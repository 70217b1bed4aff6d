"""export, verify, inspect: what is done with adapter files."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from finetune.files.inspection import Inspection
    from finetune.proof.verify import Report

_SHOWN = 8  # lines of a list on the one screen; --json has all


class Layout(StrEnum):
    universal = "universal"
    diffusers = "diffusers"
    peft = "peft"
    merged = "merged"


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


BaseOption = Annotated[str, typer.Option(help="pocket, a diffusers folder, a .safetensors checkpoint or a hub id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(verify)
    app.command()(inspect)


def export(
    source: Annotated[Path, typer.Option("--from", help="A LoRA file, a PEFT directory or a run folder.")],
    layout: Annotated[Layout, typer.Option(help="universal is what every program reads.")] = Layout.universal,
    out: Annotated[Path | None, typer.Option(help="File (folder for peft and merged); must not exist.")] = None,
    base: BaseOption = "",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights written.")] = Dtype.float32,
) -> None:
    """Write an adapter in another layout.

    Whoever made it; with --base it is also proved in that base.
    """
    from finetune.proof.export import convert

    if layout is Layout.merged and not base:
        base = _run_base(source)
    suffix = ".safetensors" if layout in (Layout.universal, Layout.diffusers) else ""
    target = out or Path(f"{source.resolve().name.removesuffix('.safetensors')}-{layout.value}{suffix}")
    off = convert(source, layout.value, target, base, dtype.value)
    if layout is Layout.merged:
        typer.echo(f"{target}: the merged pipeline; rounding to {dtype.value} lost {off:.2%} of the change")
    else:
        typer.echo(f"{target}: written and re-opened; differs from its source by {off:.1e}")


def verify(
    file: Annotated[Path, typer.Argument(help="A LoRA file or PEFT directory, of any origin.")],
    base: BaseOption = "",
    run: Annotated[Path | None, typer.Option(help="The run folder that trained it, to compare with.")] = None,
    base_bits: Annotated[
        int | None, typer.Option(help="4: open the base's denoiser in nf4, where it would not fit in full.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove an adapter file in a fresh base.

    Read it strictly, load it as users do, and measure what it does.
    Exit 0: verified; 5: it fails; 2: it cannot be read at all (truncated, pickled, no safetensors).
    """
    from finetune.errors import VerifyError
    from finetune.files import layouts
    from finetune.proof.verify import verify as check

    base = base or _base_of(file, run)
    live = layouts.read(run / "adapter" / "peft").modules if run else None
    report = check(file, base, live, base_bits)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _show_report(report)
    if not report.ok:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise VerifyError(f"{file}: {report.problems[0]}{more}", _advice(report))


def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file, PEFT directory or run folder.")],
    as_json: JsonOption = False,
) -> None:
    """Show what an adapter file holds; needs no base."""
    from finetune.files.inspection import inspect as look

    found = look(file)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _show_inspection(found)


def _base_of(file: Path, run: Path | None) -> str:
    """The run's base, or that of the run folder the file lies in, or what the file says."""
    from finetune.errors import BaseError
    from finetune.files import layouts

    for folder in ([run] if run else []) + [file.parent.parent, file]:
        if (folder / "recipe.toml").is_file():
            return _run_base(folder)
    said = layouts.read(file).metadata.get("finetune.base", "")
    if not said:
        raise BaseError(f"{file} does not say what base it was made for", "say --base")
    return said


def _run_base(run: Path) -> str:
    from finetune import recipe

    file = run / "recipe.toml"
    return recipe.load(file).recipe.base if file.is_file() else ""


def _advice(report: "Report") -> str:
    if any("made for" in problem for problem in report.problems):
        return "verify it with the base it was made for"
    if any("changed after" in problem for problem in report.problems) or report.live is not None:
        return "export it again from the run: finetune export --from RUN"
    return "get the file again; `finetune export --from FILE --layout universal` repairs names and scales"


def _output(change: float | None) -> str:
    return "" if change is None else f", output by {change:.2e}"


def _show_report(report: "Report") -> None:
    rows = [
        ("layout", report.layout),
        ("modules", f"{report.hit} of {report.expected} expected"),
        ("unused keys", str(len(report.unused))),
        ("rank", _counts(report.ranks)),
        ("alpha", _counts(report.alphas)),
    ]
    rows += [
        (e.component, f"{e.modules} modules change; weights by {e.weight:.2e}{_output(e.output)}")
        for e in report.effects
    ]
    rows += [
        ("in stock diffusers", _off(report.stock, "not loaded")),
        ("against the live model", _off(report.live, "no run given")),
    ]
    table = _table(f"{report.file} on {report.base}", rows)
    _print(table, [f"problem: {p}" for p in report.problems[:_SHOWN]], len(report.problems) - _SHOWN)
    _print(None, [f"note: {f}" for f in report.findings[:_SHOWN]], len(report.findings) - _SHOWN)
    typer.echo("verified" if report.ok else "NOT verified")


def _show_inspection(found: "Inspection") -> None:
    norms = {c: [p.norm for p in found.modules if p.module.startswith((c, f"lora_{c[:2]}"))] for c in found.components}
    rows = [
        ("layout", found.layout),
        ("size", f"{found.size_bytes / 1e6:.2f} MB, {found.tensors} tensors, {_counts(found.dtypes)}"),
        ("rank", _counts(found.ranks)),
        ("rank as trained", _counts(found.trained_ranks) if found.trained_ranks.keys() != found.ranks.keys() else ""),
        *((c, f"{n} modules, change {sum(x * x for x in norms[c]) ** 0.5:.3g}") for c, n in found.components.items()),
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

    console = Console(highlight=False, markup=False)
    if table is not None:
        console.print(table)
    for line in lines + ([f"... and {more} more; --json has all"] if more > 0 else []):
        console.print(line, soft_wrap=True)


def _counts(values: dict[str, int]) -> str:
    """One value alone, several with how often each occurs."""
    return "".join(values) if len(values) == 1 else ", ".join(f"{v} ({n}x)" for v, n in values.items())


def _off(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"worst module differs by {value:.1e}"
