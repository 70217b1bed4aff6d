"""Pictures as they are written, on the screen. Imports torch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from finetune.cli.options import Output
from finetune.errors import InputError
from finetune.sampling import folder
from finetune.sampling.request import AdapterWeight, SampleSet, SessionOptions


def sample(
    base: str, wanted: SampleSet, out: Path, adapters: Sequence[AdapterWeight], options: SessionOptions, output: Output
) -> None:  # fmt: skip
    console = Console()
    count = len(wanted.prompts) * wanted.count
    made, hidden = folder.sample(base, wanted, out, adapters, options), not (output.details and console.is_terminal)
    written = list(track(made, "generating", count + 1, console=console, disable=hidden))
    for one in written:
        if one.blocked and output.details:
            console.print(f"[yellow]warning:[/] the base's safety checker blanked {one.path.name}", soft_wrap=True)
    *pictures, grid = written
    shown = [{"path": str(one.path), "blanked": one.blocked} for one in pictures]
    output.json({"pictures": shown, "grid": str(grid.path)})
    output.result(f"{count} {'picture' if count == 1 else 'pictures'} in {out}; all of them: {grid.path}")


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
