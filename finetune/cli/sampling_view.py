"""Pictures as they are written, on the screen. Imports torch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from finetune.errors import InputError
from finetune.sampling import folder
from finetune.sampling.request import AdapterWeight, SampleSet, SessionOptions


def sample(
    base: str, wanted: SampleSet, out: Path, adapters: Sequence[AdapterWeight], options: SessionOptions
) -> None:  # fmt: skip
    console = Console()
    count = len(wanted.prompts) * wanted.count
    made = folder.sample(base, wanted, out, adapters, options)
    for written in track(made, "making pictures", count + 1, console=console, disable=not console.is_terminal):
        if written.blocked:
            console.print(f"[yellow]the base's safety checker blanked {written.path.name}[/]")
    console.print(f"{count} pictures in {out}; all of them: {out / folder.GRID}", highlight=False, soft_wrap=True)


def lines(file: Path) -> list[str]:
    """The prompts of a text file, one a line."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read {file}: {e}", "a UTF-8 text file, one prompt a line") from e


def size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as e:
        raise InputError(f"--size {text} is not a size", "write it as WIDTHxHEIGHT, such as 512x768") from e
    return width, height
