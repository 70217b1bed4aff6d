"""Pictures as they are written, on the screen. Imports torch."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from finetune import reading
from finetune.cli.options import Output
from finetune.errors import InputError
from finetune.events import Note, Warned
from finetune.planning.prompts import NamedPrompt
from finetune.recipe import bounds
from finetune.recipe.placeholders import prompt_fault
from finetune.reporting.markup import escape
from finetune.sampling import folder
from finetune.sampling.folder import Written
from finetune.sampling.request import AdapterWeight, SampleSet, SessionOptions


def sample(
    base: str, wanted: SampleSet, out: Path, adapters: Sequence[AdapterWeight], options: SessionOptions, output: Output
) -> None:  # fmt: skip
    console = Console(highlight=False)
    count, said = len(wanted.prompts) * wanted.count, list[Note | Warned]()
    hidden = not (output.details and console.is_terminal)
    made = _pictures(folder.sample(base, wanted, out, adapters, options), said, console if output.details else None)
    written = list(track(made, "generating", count + 1, console=console, disable=hidden))
    for one in written:
        if one.blocked and output.details:
            console.print(f"[yellow]warning:[/] the base's safety checker blanked {one.path.name}", soft_wrap=True)
    *pictures, grid = written
    shown = [{"path": str(one.path), "blanked": one.blocked} for one in pictures]
    notes, warnings = ([one.text for one in said if isinstance(one, kind)] for kind in (Note, Warned))
    output.json({"pictures": shown, "grid": str(grid.path), "notes": notes, "warnings": warnings})
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


def prompts_of(file: Path) -> list[NamedPrompt]:
    """The prompts of a text file, one a line, each with its line's number.

    Raises:
        InputError: the file cannot be read, has no prompt, or a line that is none.
    """
    hint = "a UTF-8 text file, one prompt a line"
    lines = reading.read_text(file, InputError, hint, reading.CONFIG_BYTES).splitlines()
    found = [NamedPrompt(f"{file} line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{file} has no prompt", "write one prompt a line")
    bounds.check_pictures(len(found), 1)  # before each is looked at
    for where, text in found:
        if text.startswith("#"):
            raise InputError(f"{where} begins with #: comments are not read", "take the line out, or the #")
        if fault := prompt_fault(text):
            raise InputError(f'{where}, "{text}": {fault.problem}', fault.remedy)
    return found


def size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as e:
        raise InputError(f"--size {text} is not a size", "write it as WIDTHxHEIGHT, such as 512x768") from e
    return width, height
