"""A run on the screen and in its folder. Imports torch: only for commands that train."""

import shlex
from pathlib import Path

from rich.console import Console

from finetune import recipe
from finetune.events import Event
from finetune.recipe import Loaded
from finetune.reporting.listeners import JsonLines, Screen, TensorBoard, everyone
from finetune.training.run import Result, run


def train(loaded: Loaded, out: Path, resume: bool) -> Result:
    """Run with a progress bar, events.jsonl and TensorBoard; say where the files are."""
    console = Console()
    screen, curves = Screen(console), TensorBoard(out / "tensorboard")
    files = _Later(out)
    try:
        result = run(loaded, out, everyone(screen, files, curves), resume)
    finally:
        screen.close()
        curves.close()
    if result.report is None and result.path == out:  # a rank beside the main one
        return result
    console.print(f"\n[bold green]done[/]  {result.path}", highlight=False, soft_wrap=True)
    console.print(f"      {result.sheet}  (base row, adapter row, same seeds)", highlight=False, soft_wrap=True)
    console.print(f"next: {_sample(out, loaded.recipe.base, result.path)}", highlight=False, soft_wrap=True)
    return result


def _sample(out: Path, base: str, path: Path) -> str:
    """A command that draws the first prompt with what was trained."""
    wanted = recipe.load(out / "recipe.toml").recipe.sample
    what = ["--base", str(path)] if path.is_dir() else ["--base", base, "--adapter", str(path)]
    asked = ["--prompt", wanted.prompts[0], "--guidance", f"{wanted.guidance:g}", "--out", "pictures"]
    return shlex.join(["finetune", "sample", *what, *asked])


class _Later:
    """events.jsonl, opened at the first event: a run that is refused leaves no file."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.lines: JsonLines | None = None

    def __call__(self, event: Event) -> None:
        if self.lines is None:
            self.lines = JsonLines(self.out / "events.jsonl")
        self.lines(event)
