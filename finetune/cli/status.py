"""`status`: where runs stand, while they go on and after they ended."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, Output, Quiet


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Folders of runs, or folders that hold some.",
            show_default="all runs beneath the current folder",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing changes until the runs end.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the progress of runs, how they ended, and where to look.

    Step, speed, time left, loss and last scores of a run; the pictures and adapter it has so far; how to continue one
    that stopped, also after a crash. Several runs are shown as a table. Ctrl-C ends --follow, never the run.
    """
    from finetune.cli import status_view

    status_view.status(runs or [Path()], follow, Output(as_json, quiet))
