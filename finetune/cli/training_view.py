"""A run on the screen. Imports torch: only for commands that train."""

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console

from finetune import reading, recipe
from finetune.cli.options import Output
from finetune.cli.wording import with_commands, worded_here
from finetune.errors import action
from finetune.events import Advanced, Event, Finished, Warned
from finetune.recipe import Loaded
from finetune.reporting.history import RECIPE_FILE
from finetune.reporting.jsonl import json_line
from finetune.reporting.markup import escape
from finetune.reporting.screen import Screen
from finetune.reporting.status import REPORT
from finetune.training.run import run
from finetune.training.stop import follow


def train(loaded: Loaded, out: Path, resume: bool, output: Output) -> None:
    """Run with a progress bar, or with a JSON line for each event; say where the files are."""
    console = Console(highlight=False, emoji=False)
    screen, before = Screen(console), _written(out / REPORT)
    try:
        result = follow(run(loaded, out, resume, worded_here), _listener(screen, output))
    finally:
        screen.close()
        if output.details and _written(out / REPORT) != before:  # of a run that was refused it is another's
            console.print(f"\n[bold]page[/]  {escape(str(out / REPORT))}  (open it in a browser)", soft_wrap=True)
    if not isinstance(result, Finished):  # a rank beside the main one
        return
    if output.details:
        console.print(f"[bold green]done[/]  {escape(str(result.path))}", soft_wrap=True)
        console.print(f"      {escape(str(result.sheet))}", soft_wrap=True)
        console.print(f"next: {escape(_sample(out, loaded.recipe.base, result.path))}", soft_wrap=True)
    else:
        output.result(str(result.path))


def _written(page: Path) -> int:
    """When, in nanoseconds; 0: never."""
    return page.stat().st_mtime_ns if reading.is_file(page) else 0


def _listener(screen: Screen, output: Output) -> Callable[[Event], None]:
    if output.as_json:
        return lambda event: None if isinstance(event, Advanced) else typer.echo(json_line(event))
    return (lambda event: None) if output.quiet else lambda event: screen(_worded(event))


def _worded(event: Event) -> Event:
    return Warned(with_commands(event.text)) if isinstance(event, Warned) else event


def _sample(out: Path, base: str, path: Path) -> str:
    """A command that generates the first picture of the sheet's adapter row again."""
    wanted = recipe.load(out / RECIPE_FILE).recipe.sample
    what = {"base": path} if reading.is_dir(path) else {"base": base, "adapter": path}
    step = action("sample", **what, prompt=wanted.prompts[0], guidance=f"{wanted.guidance:g}", out="pictures")
    return worded_here(step)
