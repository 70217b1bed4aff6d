"""`recipes`, `plan` and `train`."""

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from finetune import reading
from finetune import recipe as recipe_files
from finetune.cli.options import ARGUMENTS, AsJson, Output, Quiet, number
from finetune.cli.wording import with_commands
from finetune.reporting.shown import harmless
from finetune.resources import RECIPES

Sets = Annotated[list[str] | None, typer.Option("--set", help="Override one value: table.key=value. May be repeated.")]
RecipeFile = Annotated[Path, typer.Argument(help="A recipe file, or the name of a shipped recipe.")]
RecipeName = Annotated[Path, typer.Argument(help="A name that `recipes list` shows.")]

recipes = typer.Typer(no_args_is_help=True, help="List, show or copy the recipes that come with finetune.")


def register(app: typer.Typer) -> None:
    app.add_typer(recipes, name="recipes")
    app.command()(plan)
    app.command(cls=Train)(train)


@recipes.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes, and the GPU memory each one is made for."""
    rows = [(p.stem, *_about(p.read_text(encoding="utf-8"))) for p in _shipped()]
    output, width = Output(as_json), max(len(name) for name, *_ in rows)
    output.json([{"name": n, "gpu_gb": gpu, "about": about} for n, gpu, about in rows], indent=1)
    for name, gpu, about in rows:
        output.result(f"{name:<{width}}  {f'{gpu} GB' if gpu else '-':>5}  {about}")


@recipes.command("show")
def show_recipe(name: RecipeName, as_json: AsJson = False) -> None:
    """Print a recipe."""
    text = recipe_files.whole_text(recipe_files.find_recipe(name))
    Output(as_json).json({"name": name.stem, "text": text, "settings": tomllib.loads(text)})
    if not as_json:
        typer.echo(text, nl=False)


@recipes.command("copy")
def copy_recipe(
    name: RecipeName,
    to: Annotated[
        Path | None, typer.Argument(help="Where to write it.", show_default="NAME.toml in this folder")
    ] = None,
) -> None:
    """Copy a recipe, so that you can change it."""
    from finetune.errors import RunError
    from finetune.saving import write_bytes

    source = recipe_files.find_recipe(name)
    target = to / source.name if to and reading.is_dir(to) else to or Path(source.name)
    if reading.exists(target):
        raise RunError(f"{target} exists", "choose another name")
    try:
        write_bytes(recipe_files.whole_text(source).encode(), target)
    except OSError as e:
        raise RunError(f"cannot write {target}: {e.strerror}", "choose another place") from e
    typer.echo(f"wrote {target}   next: change it, then finetune plan {target}")


def plan(
    recipe: RecipeFile,
    sets: Sets = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take one real training step, to measure time and peak memory.")
    ] = False,
    gpus: Annotated[int, number("gpus", help="Number of GPUs the run will use.")] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a run will do, without starting it.

    How long it trains, how much memory it takes and whether it fits; then every setting and where it comes from.
    """
    loaded = recipe_files.load(recipe, sets or [])
    from rich.console import Console

    from finetune.cli import plan_view
    from finetune.cli.watching import watched
    from finetune.planning import counts
    from finetune.planning import plan as planning

    output = Output(as_json, quiet)
    settled = watched(planning.resolving(loaded, gpus), Console(highlight=False, emoji=False), output)
    for notice in settled.notices:
        typer.echo(harmless(f"note: {with_commands(notice)}"), err=True)
    rows, kept = counts.kept_footprints(settled), counts.kept_activation_bytes(settled)
    measured = None
    if measure:
        from finetune.training import run

        measured = run.measure_plan(settled)
    output.json(plan_view.as_json(settled, rows, measured, kept), indent=1)
    if output.details:
        plan_view.show(settled, rows, measured, kept)
    elif quiet:
        output.result(plan_view.answers(settled, rows, measured, kept)["verdict"])


class Train(TyperCommand):
    """`--resume` is a flag, and takes the word `auto`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        pairs = zip(args, [*args[1:], ""], strict=True)
        auto = next((i for i, pair in enumerate(pairs) if pair == ("--resume", "auto")), None)
        if auto is not None:
            args = [*args[:auto], "--resume-auto", *args[auto + 2 :]]
        return super().parse_args(ctx, args)


def train(
    ctx: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file, or the name of a shipped recipe.",
            show_default="with --resume: the run's own",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the run makes.")],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out from its newest checkpoint; --resume auto starts it if there is none yet.",
        ),
    ] = False,
    auto: Annotated[bool, typer.Option("--resume-auto", hidden=True, help="What --resume auto stands for.")] = False,
    gpus: Annotated[int, number("gpus", help="Number of GPUs of this machine to train on, with one process each.")] = 1,
    sets: Sets = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter, export it, and verify the file.

    Ctrl-C saves and stops; --resume continues with the run's own recipe, changed by --set and by later edits of RECIPE
    if that is possible. With --json every event of the run is one JSON line on stdout.
    """
    if gpus > 1 and (code := _launched(gpus, ctx.find_root().meta[ARGUMENTS])) is not None:
        raise typer.Exit(code)
    if auto:
        from finetune.training.resume import goes_on

        resume = goes_on(out)
    loaded = _to_train(recipe, out, resume, sets or [])
    from finetune.cli import training_view

    training_view.train(loaded, out, resume, Output(as_json, quiet))


def _launched(gpus: int, arguments: list[str]) -> int | None:
    """The exit code of so many processes of this command; None in one of them. arguments: of the program.

    Raises:
        RunError: another launcher has started another number.
    """
    from finetune.errors import RunError

    if "LOCAL_RANK" not in os.environ:
        from finetune.training.launch import launch

        return launch(gpus, [sys.executable, "-m", "finetune", *arguments], lambda line: typer.echo(line, err=True))
    if os.environ.get("WORLD_SIZE") != str(gpus):
        started = os.environ.get("WORLD_SIZE", "1")
        raise RunError(f"`gpus` is {gpus}, and a launcher has started {started} processes", "leave out `gpus`")
    return None


def _to_train(written: Path | None, out: Path, resume: bool, sets: list[str]) -> recipe_files.Loaded:
    if resume:
        from finetune.training.resume import own_recipe

        return own_recipe(out, written, sets)
    if written is None:
        from finetune.errors import RunError, action

        raise RunError("a new run needs a recipe", "see the shipped ones", action("recipes list"))
    return recipe_files.load(written, sets)


def _about(text: str) -> tuple[int | None, str]:
    """The memory of the GPU that a recipe is made for, in GB, and what it is for: its first two lines."""
    about, second = text.split("\n", 2)[:2]
    found = re.match(r"# GPU: (\d+) GB", second)
    return int(found[1]) if found else None, about.lstrip("# ")


def _shipped() -> list[Path]:
    return sorted(RECIPES.glob("*.toml"), key=lambda path: path.stem)
