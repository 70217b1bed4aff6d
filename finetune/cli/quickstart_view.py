"""The whole job on the bundled example, with a word on each stage. Imports torch."""

from pathlib import Path

from rich.console import Console

from finetune import recipe
from finetune import resources as shipped
from finetune.errors import RunError

NAMES = {"product": "cup", "style": "brand"}


def quickstart(out: Path, kind: str) -> None:
    from finetune.cli.training_view import train

    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty", f"--out {out}-2, or remove it")
    console = Console()
    console.print(f"[bold]1 prepare[/]  the example {kind}: {shipped.EXAMPLES / kind}", highlight=False, soft_wrap=True)
    _prepare(kind, out / "data", console)
    console.print(
        f"[bold]2 train, export, verify, sample[/]  recipe pocket-{kind} on the base `pocket`", highlight=False
    )
    loaded = recipe.load(Path(f"pocket-{kind}"), [f"data.path={out / 'data'}", f"name={NAMES[kind]}"])
    train(loaded, out / "run", resume=False)
    console.print(f"yours: finetune prepare PHOTOS --out my-data --trigger sks --class-word mug\n"
                  f"       finetune recipes copy pocket-{kind} mine.toml", highlight=False, soft_wrap=True)  # fmt: skip


def _prepare(kind: str, out: Path, console: Console) -> None:
    from finetune.data import dataset

    found = dataset.prepare(shipped.EXAMPLES / kind, out)
    console.print(f"           {len(found.examples)} images, trigger {found.trigger!r}; first caption: "
                  f"{found.examples[0].caption!r}", highlight=False, soft_wrap=True)  # fmt: skip
