"""A procedure's events on the screen while it runs. Imports rich: only for commands that work for a while."""

from collections.abc import Generator
from typing import TypeVar

from rich.console import Console

from finetune.cli.options import Output
from finetune.events import Event
from finetune.reporting.screen import Screen

Result = TypeVar("Result")


def watched(
    work: Generator[Event, None, Result], console: Console, output: Output, unsaid: tuple[type[Event], ...] = ()
) -> Result:  # fmt: skip
    """Carry it out with notes and a progress bar, or quietly. Returns what it returns. unsaid: shown otherwise."""
    screen = Screen(console)
    try:
        while True:
            event = next(work)
            if output.details and not isinstance(event, unsaid):
                screen(event)
    except StopIteration as e:
        result: Result = e.value
        return result
    finally:
        screen.close()
