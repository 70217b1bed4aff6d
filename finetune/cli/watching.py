"""A procedure's events on the screen while it runs. Imports rich: only for commands that work for a while."""

from collections.abc import Generator
from typing import TypeVar

from rich.console import Console

from finetune.cli.options import Output
from finetune.events import Event, Warned
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


def noting(work: Generator[Event, None, Result], said: list[str]) -> Generator[Event, None, Result]:
    """The same work; what it warns of is noted as well."""
    while True:
        try:
            event = next(work)
        except StopIteration as e:
            result: Result = e.value
            return result
        if isinstance(event, Warned):
            said.append(event.text)
        yield event
