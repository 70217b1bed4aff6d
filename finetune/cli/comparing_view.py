"""A comparison on the screen. Imports torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from finetune.cli import sampling_view
from finetune.cli.options import Output
from finetune.cli.watching import watched
from finetune.cli.wording import worded_here
from finetune.errors import InputError
from finetune.evaluation.compare import Comparison, ComparisonRequest, as_json
from finetune.evaluation.compare import compare as events_of
from finetune.pages.comparison import PICTURES, begun, claim, write_comparison
from finetune.reporting.markup import escape
from finetune.sampling.prompt_file import PromptFile
from finetune.sampling.request import AS_ALL


def compare(wanted: ComparisonRequest, out: Path, output: Output, notes: Sequence[str] = ()) -> None:
    """With a progress bar; the page's path last. notes: what is said beforehand."""
    console = Console(highlight=False, emoji=False)
    for note in notes if output.details else ():
        console.print(escape(note), soft_wrap=True)
    claim(out, wanted)
    found = watched(begun(events_of(wanted, out / PICTURES), wanted, out), console, output)
    page = write_comparison(found, wanted, out, worded_here)
    output.json({**as_json(found, wanted), "page": str(page)})
    if output.details:
        _show(found, console)
    output.result(str(page))


def prompts_of(prompts: Iterable[str], file: Path | None) -> PromptFile:
    """As of `sample`, without options: pictures that are compared are made alike. Raises InputError: one has some."""
    found = sampling_view.prompts_of(prompts, file)
    for line in found.lines:
        if line.options._replace(where="") != AS_ALL:
            raise InputError(
                f"{line.prompt.where} has options of its own, but pictures are compared at equal settings",
                "leave them out; `seed` and `count` are for all prompts",
            )
    return found


def weights_of(text: str) -> tuple[float, ...]:
    """Raises InputError: they are no numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise InputError(f"`weights` {text}: these are no numbers", "write them as 0.6,0.8,1") from e


def steps_of(text: str) -> tuple[int, ...] | Literal["all"]:
    """Raises InputError: they are no steps."""
    if text == "all":
        return "all"
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and len(part) < 12 for part in parts):
        raise InputError(f"`steps` {text}: these are no steps", "write all, or such as 500,1000")
    return tuple(map(int, parts))


def _show(found: Comparison, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(dict.fromkeys(name for row in found.rows for name in row.scores if name != "diversity"))
    for name in ("adapter", *(["seen"] if names else []), *names):
        table.add_column(name)
    for n, row in enumerate(found.rows):
        if row.scores:
            mark = "[green]" if n == found.best else ""
            values = (f"{row.scores[name].value:.2f}" if name in row.scores else "" for name in names)
            table.add_row(f"{mark}{escape(row.label)}", row.seen, *values)
    if names:
        console.print(table)
    took = "" if found.best is None else f"take {found.rows[found.best].label}: "
    console.print(escape(took + found.why), soft_wrap=True)
