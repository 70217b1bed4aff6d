"""Masking on the screen. Imports torch: only for the command that masks."""

from pathlib import Path

from rich.console import Console

from finetune.cli.options import Output
from finetune.cli.watching import watched
from finetune.masking.choice import MaskerChoice
from finetune.masking.dataset import Masked, mask_dataset
from finetune.reporting.markup import escape

SHOWN = 5


def mask(path: Path, choice: MaskerChoice, again: bool, output: Output) -> None:
    """Mask with a progress bar, or quietly; say what was written and where."""
    console = Console(highlight=False, emoji=False)
    done = watched(mask_dataset(path, choice.checked(), again), console, output)
    if output.details:
        for one in done.refused[:SHOWN]:
            console.print(f"[yellow]no mask[/yellow]  {escape(f'{one.file}: {one.reason}')}", soft_wrap=True)
        if len(done.refused) > SHOWN:
            console.print(f"[yellow]no mask[/yellow]  {len(done.refused) - SHOWN} more")
        if done.kept:
            console.print(f"kept as it was: {done.kept} {'mask' if done.kept == 1 else 'masks'}")
    output.json(as_json(done))
    output.result(_line(path, done) + ("" if output.quiet else f"   next: finetune check {path} --html masks.html"))


def as_json(done: Masked) -> dict[str, object]:
    return {
        "written": str(done.folder) if done.masks else None,
        "masked": len(done.masks),
        "masks": done.masks,
        "kept": done.kept,
        "refused": [one._asdict() for one in done.refused],
    }


def _line(path: Path, done: Masked) -> str:
    return f"wrote {done.folder}: {len(done.masks)} masks" if done.masks else f"nothing to mask in {path}"
