"""`report`: a run's page."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, Output, Quiet


def register(app: typer.Typer) -> None:
    app.command()(report)


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the page.", show_default="RUN/report.html")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's page: did it learn, which file to use.

    One HTML file with all pictures in it. `train` writes it as it goes; this writes it again from the run's folder,
    also of a run that is still running, was interrupted, or failed.
    """
    from finetune.cli import app
    from finetune.cli.wording import written
    from finetune.pages.report import write_report

    program, output = typer.main.get_command(app), Output(as_json, quiet)
    path = write_report(run, out, lambda step: written(step, program))
    output.json({"path": str(path)})
    output.result(str(path))
