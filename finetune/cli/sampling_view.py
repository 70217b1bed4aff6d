"""Pictures as they are written, on the screen. Imports torch."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import track

from finetune.cli.options import Output
from finetune.errors import InputError
from finetune.events import Note, Warned
from finetune.planning.prompts import NamedPrompt
from finetune.recipe.foreign_syntax import translated
from finetune.reporting.markup import escape
from finetune.sampling import folder
from finetune.sampling.folder import Written
from finetune.sampling.prompt_file import PromptFile, PromptLine, read_prompts
from finetune.sampling.request import AS_ALL, AdapterWeight, SampleSet, SessionOptions


def sample(
    base: str, wanted: SampleSet, out: Path, adapters: Sequence[AdapterWeight], options: SessionOptions, output: Output,
    notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """notes: what is said beforehand."""
    console = Console(highlight=False, emoji=False)
    count, said = len(wanted.prompts) * wanted.count, list[Note | Warned]()
    hidden = not (output.details and console.is_terminal)
    events = chain(map(Note, notes), folder.sample(base, wanted, out, adapters, options))
    made = _pictures(events, said, console if output.details else None)
    written = list(track(made, "generating", count + 1, console=console, disable=hidden))
    for one in written:
        if one.blocked and output.details:
            console.print(f"[yellow]warning:[/] the base's safety checker blanked {one.path.name}", soft_wrap=True)
    *pictures, grid = written
    shown = [{"path": str(one.path), "blanked": one.blocked} for one in pictures]
    told, warnings = ([one.text for one in said if isinstance(one, kind)] for kind in (Note, Warned))
    output.json({"pictures": shown, "grid": str(grid.path), "notes": told, "warnings": warnings})
    output.result(f"{count} {'picture' if count == 1 else 'pictures'} in {out}; all of them: {grid.path}")


def _pictures(
    events: Iterable[Note | Warned | Written], said: list[Note | Warned], console: Console | None
) -> Iterator[Written]:
    """What is written; what is said is kept, and shown where there is a console."""
    for event in events:
        if isinstance(event, Written):
            yield event
            continue
        said.append(event)
        if console:
            warning = "[yellow]warning:[/] " if isinstance(event, Warned) else ""
            console.print(f"{warning}{escape(event.text)}", soft_wrap=True)


def prompts_of(prompts: Iterable[str], file: Path | None) -> PromptFile:
    """The prompts of the command line, then those of a file.

    Raises:
        InputError: the file cannot be read, has no prompt, or one that is none.
    """
    lines, notes = list[PromptLine](), list[str]()
    for n, text in enumerate(prompts, 1):
        read = translated(text)
        lines.append(PromptLine(NamedPrompt(f"--prompt {n}", read.text), AS_ALL))
        notes += [f"--prompt {n}: {one}" for one in read.found]
    found = read_prompts(file) if file else PromptFile([], [])
    return PromptFile(lines + found.lines, notes + found.notes)


def size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as e:
        raise InputError(f"--size {text} is not a size", "write it as WIDTHxHEIGHT, such as 512x768") from e
    return width, height
