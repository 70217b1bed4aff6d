"""A verdict on the screen. Imports torch."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from finetune.cli.options import Output
from finetune.cli.watching import watched
from finetune.cli.wording import worded_here
from finetune.evaluation.evaluate import evaluate as events_of
from finetune.evaluation.meaning import meaning
from finetune.evaluation.subject import of_path
from finetune.evaluation.verdict import not_learnt
from finetune.events import Evaluated
from finetune.pages.writer import keep_verdict
from finetune.reporting.markup import escape


def evaluate(
    what: Path, base: str, data: Path | None, judge: Path | None, count: int | None, output: Output
) -> None:  # fmt: skip
    """With a progress bar; exit code 4 when it was not learnt."""
    console = Console(highlight=False, emoji=False)
    told = watched(events_of(of_path(what, base, data, judge, count)), console, output, unsaid=(Evaluated,))
    page = keep_verdict(what, told, worded_here)
    output.json(as_json(told))
    if output.details:
        _show(told, console)
        if page:
            console.print(f"page: {escape(str(page))}", soft_wrap=True)
    if not told.learnt:
        raise not_learnt(told)
    output.result(f"learnt: {told.text}")


def as_json(told: Evaluated) -> dict[str, object]:
    return {
        "learnt": told.learnt,
        "seen": told.seen,
        "scores": {name: score._asdict() for name, score in told.scores.items()},
        "reasons": list(told.reasons),
        "text": told.text,
        "path": str(told.path),
        "sheet": str(told.sheet),
    }


def _show(told: Evaluated, console: Console) -> None:
    table = Table(show_header=False, box=None)
    for name, (value, low, high) in told.scores.items():
        table.add_row(name, f"{value:.2f}", f"{low:.2f} to {high:.2f}", meaning(name).scale)
    console.print(table)
    for reason in told.reasons:
        console.print(f"[yellow]perhaps:[/] {escape(reason)}", soft_wrap=True)
    console.print(f"[dim]pictures: {escape(str(told.sheet))}[/]", soft_wrap=True)
