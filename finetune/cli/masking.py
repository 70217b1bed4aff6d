"""`mask`: masks for the pictures of a dataset that have none."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, Output, Quiet, number


def register(app: typer.Typer) -> None:
    app.command()(mask)


def mask(
    path: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    with_model: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="MODEL",
            help="Segmentation model, by folder or hub id: CLIPSeg (finds what the class word names) or SAM (finds "
            "what is in the middle). A hub id is downloaded once. `background` needs no model: it removes a background "
            "of one colour.",
        ),
    ] = "",
    command: Annotated[
        str,
        typer.Option(
            help="Program that writes a mask: 'CMD {image} {mask}'. It runs once for each picture, without a shell."
        ),
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="What CLIPSeg should find, in a few words.", show_default="the class word")
    ] = "",
    timeout: Annotated[float, number("timeout_s", help="Seconds that --command may take for one picture.")] = 120,
    again: Annotated[
        bool, typer.Option("--again", help="Also replace masks that this command made; never those of a person.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make masks for pictures that have none.

    Training learns only what is white in a mask. Choose the model or program that makes them with --with or --command.
    Masks that a person made are never changed. New masks go to masks/ in the dataset: look at them before you train.
    Ctrl-C keeps those already made; run the same command again to continue.
    """
    from finetune.cli import masking_view
    from finetune.masking.choice import MaskerChoice

    masking_view.mask(path, MaskerChoice(with_model, command, prompt, timeout), again, Output(as_json, quiet))
