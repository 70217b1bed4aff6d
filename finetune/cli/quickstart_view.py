"""The whole job on the bundled example, with a word on each stage. Imports torch."""

from pathlib import Path

from rich.console import Console

from finetune import reading, recipe
from finetune.cli.options import Output
from finetune.errors import RunError
from finetune.resources import EXAMPLES

NAMES = {"product": "cup", "style": "brand"}


def quickstart(out: Path, kind: str, output: Output) -> None:
    from finetune.cli.training_view import train

    if reading.exists(out) and any(out.iterdir()):
        raise RunError(f"{out} is not empty", f"choose another folder, such as {out}-2 (`out`), or remove it")
    console = Console(highlight=False, emoji=False, quiet=output.quiet)
    console.print(f"[bold]1 prepare[/]  the example {kind}: {EXAMPLES / kind}", soft_wrap=True)
    _prepare(kind, out / "data", console)
    console.print(
        f"[bold]2 train, export, verify, sample[/]  recipe pocket-{kind} on the base `pocket`", soft_wrap=True
    )
    loaded = recipe.load(Path(f"pocket-{kind}"), [f"data.path={out / 'data'}", f"name={NAMES[kind]}"])
    train(loaded, out / "run", False, output)
    console.print("with your own pictures:\n  finetune prepare PHOTOS --out my-data --trigger sks --class-word mug\n"
                  f"  finetune recipes copy pocket-{kind} mine.toml", soft_wrap=True)  # fmt: skip


def _prepare(kind: str, out: Path, console: Console) -> None:
    from finetune.data.prepare import prepare

    made = prepare(EXAMPLES / kind, out)
    console.print(f"           {len(made.examples)} images, trigger {made.trigger!r}; first caption: "
                  f"{made.examples[0].caption!r}", soft_wrap=True)  # fmt: skip
