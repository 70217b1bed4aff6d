"""`recipes`, `plan` and `train`."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from finetune import recipe
from finetune import resources as shipped

Sets = Annotated[list[str] | None, typer.Option("--set", help="Another value: table.key=value. May be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RecipePath = Annotated[Path, typer.Argument(help="A recipe file, or the name of a shipped one.")]

recipes = typer.Typer(no_args_is_help=True, help="The shipped recipes.")


def register(app: typer.Typer) -> None:
    app.add_typer(recipes, name="recipes")
    app.command()(plan)
    app.command()(train)


@recipes.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """Name the shipped recipes, and how much memory of a GPU each is made for."""
    rows = [(p.stem, *_about(p.read_text(encoding="utf-8"))) for p in _shipped()]
    if as_json:
        typer.echo(json.dumps([{"name": n, "gpu_gb": gpu, "about": about} for n, gpu, about in rows], indent=1))
        return
    width = max(len(name) for name, *_ in rows)
    for name, gpu, about in rows:
        typer.echo(f"{name:<{width}}  {f'{gpu} GB' if gpu else '-':>5}  {about}")


@recipes.command("show")
def show_recipe(name: Annotated[Path, typer.Argument(help="A name of `recipes list`.")]) -> None:
    """Print a recipe."""
    typer.echo(recipe.whole_text(recipe.find(name)), nl=False)


@recipes.command("copy")
def copy_recipe(
    name: Annotated[Path, typer.Argument(help="A name of `recipes list`.")],
    to: Annotated[Path | None, typer.Argument(help="Where to. Default: NAME.toml here.")] = None,
) -> None:
    """Copy a recipe, to change it."""
    from finetune.errors import RunError

    source = recipe.find(name)
    target = to / source.name if to and to.is_dir() else to or Path(source.name)
    if target.exists():
        raise RunError(f"{target} exists", "another name")
    try:
        target.write_text(recipe.whole_text(source), encoding="utf-8")
    except OSError as e:
        raise RunError(f"cannot write {target}: {e.strerror}", "another place") from e
    typer.echo(f"{target}: change it, then `finetune plan {target}`")


def plan(
    path: RecipePath,
    sets: Sets = None,
    measure: Annotated[bool, typer.Option(help="Take one real step at the largest bucket: peak memory, time.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Plan for so many.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Say all that a run would do; do nothing."""
    loaded = recipe.load(path, sets or [])
    from finetune.cli import plan_view
    from finetune.planning import activations as memory
    from finetune.planning import footprint
    from finetune.planning import plan as planning

    for notice in loaded.notices:
        typer.echo(f"note: {notice}", err=True)
    settled = planning.settle(loaded, gpus)
    rows, kept = footprint.components(settled), memory.activation_bytes(settled)
    measured = None
    if measure:
        from finetune.training import run

        measured = run.measure(settled)
    if as_json:
        typer.echo(json.dumps(plan_view.as_json(settled, rows, measured, kept), indent=1))
    else:
        plan_view.show(settled, rows, measured, kept)


def train(
    path: RecipePath,
    out: Annotated[Path, typer.Option("--out", help="The run's folder.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    sets: Sets = None,
) -> None:
    """Train, export, and prove the file."""
    loaded = recipe.load(path, sets or [])
    from finetune.cli import training_view

    training_view.train(loaded, out, resume)


def _about(text: str) -> tuple[int | None, str]:
    """The memory of the GPU that a recipe is made for, in GB, and what it is for: its first two lines."""
    about, second = text.split("\n", 2)[:2]
    found = re.match(r"# GPU: (\d+) GB", second)
    return int(found[1]) if found else None, about.lstrip("# ")


def _shipped() -> list[Path]:
    return sorted(shipped.RECIPES.glob("*.toml"), key=lambda path: path.stem)
