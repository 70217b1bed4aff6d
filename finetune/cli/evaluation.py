"""`evaluate`: was it learnt?"""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, Judge, Output, Quiet, TrainingPictures, number


def register(app: typer.Typer) -> None:
    app.command()(evaluate)


def evaluate(
    what: Annotated[
        Path, typer.Argument(help="A run's folder, a step of it (RUN@500), or an adapter file.", metavar="RUN|FILE")
    ],
    base: Annotated[
        str, typer.Option(help="Base model to compare with.", show_default="the one that run or file names")
    ] = "",
    data: TrainingPictures = None,
    judge: Judge = None,
    count: Annotated[
        int | None, number("count", help="Number of pictures with the trigger.", show_default="the run's, or 10")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge whether an adapter has learnt its product or style.

    Generates fixed prompts from the adapter and from the base at the same seeds, and compares them with the training
    pictures. Exit code 0: learnt; 4: not learnt, with the likeliest cause first. Pictures are kept beside the run,
    and the verdict on a run goes into its page.
    """
    from finetune.cli import evaluation_view

    evaluation_view.evaluate(what, base, data, judge, count, Output(as_json, quiet))
