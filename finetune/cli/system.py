"""`quickstart`, `doctor` and `cache`."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, Output, Quiet

cache = typer.Typer(no_args_is_help=True, help="Show or clear the cache of encoded images and captions.")
CacheRoot = Annotated[
    Path | None,
    typer.Option("--root", help="Another cache folder.", show_default="FINETUNE_CACHE, or the user's cache folder"),
]


def register(app: typer.Typer) -> None:
    app.command()(quickstart)
    app.command()(doctor)
    app.add_typer(cache, name="cache")


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="A new folder for everything that is made.")] = Path("quickstart"),
    style: Annotated[bool, typer.Option("--style", help="Train the example style instead of the product.")] = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job on bundled pictures, in minutes.

    Prepares, trains, exports, verifies and samples: on a CPU, without the network.
    """
    from finetune.cli import quickstart_view

    quickstart_view.quickstart(out, "style" if style else "product", Output(quiet=quiet))


def doctor(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Check that this machine can train.

    Checks versions, one step of each optimizer, a computation on each GPU, disk and memory.
    """
    from finetune.cli import doctor_view

    doctor_view.doctor(Output(as_json, quiet))


@cache.command("info")
def cache_info(root: CacheRoot = None, as_json: AsJson = False) -> None:
    """Show where the cache is, and what it holds."""
    from finetune.data.record import records
    from finetune.encoding import store

    held, output = store.usage(root or store.default_root()), Output(as_json)
    known = records(held.root)
    size = held.bytes + known.bytes
    output.json({**held._asdict(), "datasets": known.datasets, "bytes": size, "root": str(held.root)})
    counts = f"{held.images} images, {held.captions} captions, {known.datasets} datasets checked"
    output.result(f"{held.root}: {counts}, {size / 2**20:.1f} MiB")


@cache.command("clear")
def cache_clear(root: CacheRoot = None) -> None:
    """Remove everything in the cache; what is needed is made again."""
    from finetune.data.record import forget, records
    from finetune.encoding import store
    from finetune.known import clear_known

    held = store.usage(root or store.default_root())
    size = held.bytes + records(held.root).bytes
    store.clear(held.root)
    forget(held.root)
    clear_known(held.root)
    typer.echo(f"{held.root}: {size / 2**20:.1f} MiB freed")
