"""`compare`: adapters and weights beside each other."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, Judge, Output, Quiet, TrainingPictures, number


def register(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    adapters: Annotated[
        list[str],
        typer.Argument(help="Adapter files, run folders or steps of runs (RUN@500).", metavar="RUN|FILE..."),
    ],
    weights: Annotated[str, typer.Option(help="Weights to try each adapter at, such as 0.6,0.8,1.")] = "1",
    steps: Annotated[
        str,
        typer.Option(
            help="Steps of each run to compare, instead of its result: all, or such as 500,1000.", show_default="none"
        ),
    ] = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to show, such as 'a {trigger} {class_word} on a beach'. May be repeated.",
            show_default="the verdict's",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt per line, as for `finetune sample`.")
    ] = None,
    seed: Annotated[int, number("sample.seed", help="First seed for the prompts that you give.")] = 0,
    count: Annotated[int, number("count", help="Number of seeds for each prompt that you give.")] = 1,
    base: Annotated[
        str, typer.Option(help="Base model to generate with.", show_default="the one that the adapters name")
    ] = "",
    data: TrainingPictures = None,
    judge: Judge = None,
    out: Annotated[Path, typer.Option(help="Folder for page, sheet and pictures.")] = Path("comparison"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare adapters, weights and steps on the same prompts.

    Writes one page and one sheet, with a row for the base and one for each adapter and weight, and says which to take.
    Run the same command again to continue one that was stopped; finished pictures are kept.
    """
    from finetune.cli import comparing_view
    from finetune.evaluation.compare import ComparisonRequest

    named = comparing_view.prompts_of(prompt or (), prompts)
    texts = tuple(line.prompt.text for line in named.lines)
    wanted = ComparisonRequest(
        tuple(adapters), comparing_view.weights_of(weights), comparing_view.steps_of(steps), texts, seed, count,
        base, str(data or ""), str(judge or ""),
    )  # fmt: skip
    comparing_view.compare(wanted, out, Output(as_json, quiet), named.notes)
