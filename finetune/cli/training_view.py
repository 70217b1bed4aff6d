"""A run on the screen. Imports torch: only for commands that train."""

import shlex
from pathlib import Path

from rich.console import Console

from finetune import recipe
from finetune.events import Finished
from finetune.recipe import Loaded
from finetune.reporting.screen import Screen
from finetune.training.run import run
from finetune.training.stop import follow


def train(loaded: Loaded, out: Path, resume: bool) -> None:
    """Run with a progress bar; say where the files are."""
    console = Console()
    screen = Screen(console)
    try:
        result = follow(run(loaded, out, resume), screen)
    finally:
        screen.close()
    if not isinstance(result, Finished):  # a rank beside the main one
        return
    console.print(f"\n[bold green]done[/]  {result.path}", highlight=False, soft_wrap=True)
    console.print(f"      {result.sheet}  (base row, adapter row, same seeds)", highlight=False, soft_wrap=True)
    console.print(f"next: {_sample(out, loaded.recipe.base, result.path)}", highlight=False, soft_wrap=True)


def _sample(out: Path, base: str, path: Path) -> str:
    """A command that draws the first prompt with what was trained."""
    wanted = recipe.load(out / "recipe.toml").recipe.sample
    what = ["--base", str(path)] if path.is_dir() else ["--base", base, "--adapter", str(path)]
    asked = ["--prompt", wanted.prompts[0], "--guidance", f"{wanted.guidance:g}", "--out", "pictures"]
    return shlex.join(["finetune", "sample", *what, *asked])
