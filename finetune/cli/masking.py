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
            help="Model that finds the product, by folder or hub id: CLIPSeg (by the class word) or SAM (what is in "
            "the middle). A hub id is downloaded once. `background` needs no model: it cuts out a background of one "
            "colour.",
        ),
    ] = "",
    command: Annotated[
        str,
        typer.Option(help="Program that writes a mask: 'CMD {image} {mask}'. It runs once a picture, without a shell."),
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="What CLIPSeg looks for, in a few words.", show_default="the class word")
    ] = "",
    timeout: Annotated[float, number("timeout_s", help="Seconds that --command may take for a picture.")] = 120,
    again: Annotated[
        bool, typer.Option("--again", help="Also pictures that were masked by this command; never a person's masks.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Mask pictures that have no mask: what is white in it is learnt.

    A mask that a person made is never changed. Masks go to masks/ in the dataset; Ctrl-C keeps those that are made, and
    the same command goes on. Look at them before you train.
    """
    from finetune.cli import masking_view
    from finetune.masking.choice import MaskerChoice

    masking_view.mask(path, MaskerChoice(with_model, command, prompt, timeout), again, Output(as_json, quiet))
