"""Captioning on the screen. Imports torch: only for the command that captions."""

from pathlib import Path

from rich.console import Console

from finetune.captioning.choice import CaptionerChoice
from finetune.captioning.dataset import Captioned, caption_dataset
from finetune.captioning.prepared import caption_new
from finetune.cli.options import Output
from finetune.cli.watching import watched
from finetune.data.dataset import read_dataset
from finetune.data.example import Dataset
from finetune.data.text.wording import CaptionWords
from finetune.reporting.markup import escape

SHOWN = 3


def caption(path: Path, words: CaptionWords, choice: CaptionerChoice, again: bool, output: Output) -> None:
    """Caption with a progress bar, or quietly; say what was written and where."""
    choice.check()
    console = Console(highlight=False, emoji=False)
    done = watched(caption_dataset(path, words, choice.make, again), console, output)
    if output.details:
        _show(done, console)
    output.json(as_json(done))
    output.result(_line(path, done) + ("" if output.quiet else f"   next: finetune check {path}"))


def caption_prepared(made: Dataset, spec: str, output: Output) -> Dataset:
    """Caption what was just prepared, and read it again; a failure says how to go on."""
    work = caption_new(made.root, CaptionerChoice.of(spec))
    watched(work, Console(highlight=False, emoji=False), output)
    return read_dataset(made.root)


def as_json(done: Captioned) -> dict[str, object]:
    return {
        "written": str(done.table) if done.captions else None,
        "captioned": len(done.captions),
        "captions": done.captions,
        "kept": done.kept,
        "refused": [one._asdict() for one in done.refused],
    }


def _show(done: Captioned, console: Console) -> None:
    for name, text in list(done.captions.items())[:SHOWN]:
        console.print(f"{escape(name)}  [dim]{escape(text)}[/dim]", soft_wrap=True)
    if len(done.captions) > SHOWN:
        console.print(f"[dim]and {len(done.captions) - SHOWN} more[/dim]")
    names = {
        "written": "a person's",
        "filename": "made of file names",
        "folder": "made of folder names",
        "model": "a model's",
        "template": "the template",
    }
    for origin, count in done.kept.items():
        console.print(f"kept as it was: {count} ({names[origin]})")


def _line(path: Path, done: Captioned) -> str:
    if not done.captions:
        return f"nothing to caption in {path}"
    return f"wrote {done.table}: {len(done.captions)} captions"
