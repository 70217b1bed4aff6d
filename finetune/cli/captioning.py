"""`caption`: captions by a model for pictures that have none."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.choices import CaptionsFrom
from finetune.cli.data_options import ClassWord, KindOption, Trigger
from finetune.cli.options import AsJson, Output, Quiet, number


def register(app: typer.Typer) -> None:
    app.command()(caption)


def caption(
    path: Annotated[Path, typer.Argument(help="A prepared dataset, or a folder of images.")],
    vocabulary: Annotated[
        str,
        typer.Option(help="TOML file with lists of what may be seen, or `pocket` (bundled): CLIP finds the likeliest."),
    ] = "",
    judge: Annotated[
        str, typer.Option(help="Folder of a CLIP that judges the vocabulary.", show_default="the vocabulary's own")
    ] = "",
    with_model: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="MODEL",
            help="Model that describes pictures, by folder or hub id: BLIP, "
            "Florence-2 or Qwen-VL. A hub id is downloaded once.",
        ),
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="What the model of --with is asked.", show_default="what is usual for it")
    ] = "",
    command: Annotated[
        str, typer.Option(help="Program that prints a caption: 'CMD {image}'. It runs once a picture, without a shell.")
    ] = "",
    timeout: Annotated[float, number("timeout_s", help="Seconds that --command may take for a picture.")] = 120,
    trigger: Trigger = None,
    class_word: ClassWord = None,
    kind: KindOption = None,
    captions_from: Annotated[
        CaptionsFrom,
        typer.Option(
            "--captions-from",
            help="Where captions of a raw folder come from; with none its file names are no captions.",
        ),
    ] = "auto",
    again: Annotated[
        bool, typer.Option("--again", help="Also pictures that a model or a file's name captioned; never a person's.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Caption pictures that have no caption, with a model or a program.

    A caption that a person wrote is never changed. Captions go to metadata.jsonl, marked as a model's; Ctrl-C keeps
    those that are made, and the same command goes on.
    """
    from finetune.captioning.choice import CaptionerChoice
    from finetune.cli import captioning_view
    from finetune.data.text.captions import clean_words

    choice = CaptionerChoice(vocabulary, command, judge, timeout, with_model, prompt)
    words = clean_words(trigger, class_word, None, kind or "", captions_from)
    captioning_view.caption(path, words, choice, again, Output(as_json, quiet))
