"""A run on the screen and in its folder. Imports torch: only for commands that train."""

import logging
import warnings
from pathlib import Path

from rich.console import Console

from finetune.events import Event
from finetune.recipe import Loaded
from finetune.report import JsonLines, Screen, TensorBoard, everyone
from finetune.run import Result, run


def train(loaded: Loaded, out: Path, resume: bool) -> Result:
    """Run with a progress bar, events.jsonl and TensorBoard; say where the files are."""
    hush()
    console = Console()
    screen, curves = Screen(console), TensorBoard(out / "tensorboard")
    files = _Later(out)
    try:
        result = run(loaded, out, everyone(screen, files, curves), resume)
    finally:
        screen.close()
        curves.close()
    console.print(f"\n[bold green]done[/]  {result.path}", highlight=False, soft_wrap=True)
    console.print(f"      {result.sheet}  (base row, adapter row, same seeds)", highlight=False, soft_wrap=True)
    console.print(f"next: finetune sample --base {loaded.recipe.base} --adapter {result.path} "
                  f'--prompt "..." --out pictures', highlight=False, soft_wrap=True)  # fmt: skip
    return result


def hush() -> None:
    """Keep other libraries' chatter off the screen; their errors still come through."""
    import diffusers.utils.logging
    import transformers.utils.logging

    warnings.simplefilter("ignore")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


class _Later:
    """events.jsonl, opened at the first event: a run that is refused leaves no file."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.lines: JsonLines | None = None

    def __call__(self, event: Event) -> None:
        if self.lines is None:
            self.lines = JsonLines(self.out / "events.jsonl")
        self.lines(event)
