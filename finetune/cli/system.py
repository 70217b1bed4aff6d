"""`quickstart`, `doctor` and `cache`."""

from pathlib import Path
from typing import Annotated

import typer

cache = typer.Typer(no_args_is_help=True, help="What is kept of encoded images and captions.")
CacheRoot = Annotated[Path | None, typer.Option("--root", help="Default: FINETUNE_CACHE, or the user's cache folder.")]


def register(app: typer.Typer) -> None:
    app.command()(quickstart)
    app.command()(doctor)
    app.add_typer(cache, name="cache")


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="A new folder.")] = Path("quickstart"),
    style: Annotated[bool, typer.Option(help="Learn the example brand style, not the example product.")] = False,
) -> None:
    """The whole job on the bundled example, in minutes.

    Prepare, train, export, verify, sample: on a CPU, without the network.
    """
    from finetune.cli import quickstart_view

    quickstart_view.quickstart(out, "style" if style else "product")


def doctor() -> None:
    """Is this machine fit to train?

    Versions, one step of each optimizer, a kernel on each GPU, disk and memory.
    """
    from finetune.cli import doctor_view

    doctor_view.doctor()


@cache.command("info")
def cache_info(root: CacheRoot = None) -> None:
    """Where the cache is, and what it holds."""
    from finetune.encoding import cache as store

    found = store.usage(root or store.default_root())
    typer.echo(f"{found.root}: {found.images} images, {found.captions} captions, {found.bytes / 2**20:.1f} MiB")


@cache.command("clear")
def cache_clear(root: CacheRoot = None) -> None:
    """Remove all of it; it is made again when needed."""
    from finetune.encoding import cache as store

    found = store.usage(root or store.default_root())
    store.clear(found.root)
    typer.echo(f"{found.root}: {found.bytes / 2**20:.1f} MiB freed")
