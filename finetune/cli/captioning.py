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
        typer.Option(
            help="Lists of words from which CLIP picks those that fit each picture: a TOML file, or `pocket` (bundled)."
        ),
    ] = "",
    judge: Annotated[
        str,
        typer.Option(
            help="Folder of the CLIP model that picks from the vocabulary.", show_default="the vocabulary's own"
        ),
    ] = "",
    with_model: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="MODEL",
            help="Captioning model, by folder or hub id: BLIP, Florence-2 or Qwen-VL. A hub id is downloaded once.",
        ),
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="Instruction for the model of --with.", show_default="the model's usual one")
    ] = "",
    command: Annotated[
        str,
        typer.Option(
            help="Program that prints a caption: 'CMD {image}'. It runs once for each picture, without a shell."
        ),
    ] = "",
    timeout: Annotated[float, number("timeout_s", help="Seconds that --command may take for one picture.")] = 120,
    trigger: Trigger = None,
    class_word: ClassWord = None,
    kind: KindOption = None,
    captions_from: Annotated[
        CaptionsFrom,
        typer.Option(
            "--captions-from",
            help="Where the captions of a raw folder come from, as in `finetune prepare`; `none` also captions "
            "pictures whose file name is made of words.",
        ),
    ] = "auto",
    again: Annotated[
        bool,
        typer.Option("--again", help="Also replace captions from a model or a file name; never those of a person."),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write captions for pictures that have none.

    Choose the model or program that writes them with --vocabulary, --with or --command. Captions that a person wrote
    are never changed. New captions go to metadata.jsonl, marked as a model's. Ctrl-C keeps those already written; run
    the same command again to continue.
    """
    from finetune.captioning.choice import CaptionerChoice
    from finetune.cli import captioning_view
    from finetune.data.text.captions import clean_words

    choice = CaptionerChoice(vocabulary, command, judge, timeout, with_model, prompt)
    words = clean_words(trigger, class_word, None, kind or "", captions_from)
    captioning_view.caption(path, words, choice, again, Output(as_json, quiet))
