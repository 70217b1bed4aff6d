"""`finetune prepare` and `finetune check`: a folder of photos, made into a dataset or looked at."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.data.captions import Kind
    from finetune.data.images import Colour

MAX_ASPECT = 2.0
"""of buckets; the default of a recipe's data.max_aspect"""

Trigger = Annotated[str | None, typer.Option(help="The word that calls the subject or style; written into captions.")]
ClassWord = Annotated[str | None, typer.Option(help="What the subject is: mug, dog.")]
Template = Annotated[
    str | None, typer.Option(help="Caption of images that have none.", show_default="a photo of {trigger} {class_word}")
]
AllowUncaptioned = Annotated[
    bool, typer.Option("--allow-uncaptioned", help="Images without a caption get the template.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def register(app: typer.Typer) -> None:
    app.command()(prepare)
    app.command()(check)


def prepare(
    source: Annotated[Path, typer.Argument(help="A folder of images, with captions or without.")],
    out: Annotated[Path, typer.Option(help="The dataset to write; a new or empty folder.")],
    trigger: Trigger = None,
    class_word: ClassWord = None,
    kind: Annotated[str, typer.Option(help="product or style.", show_default=False)] = "",
    template: Template = None,
    license: Annotated[str, typer.Option(help="Under which licence the images may be used.")] = "",
    source_note: Annotated[str, typer.Option("--source", help="Where the images are from, for the record.")] = "",
    background: Annotated[str, typer.Option(help="Laid under transparency: white, black or #rrggbb.")] = "white",
    allow_uncaptioned: AllowUncaptioned = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset from a folder of photos.

    Upright, RGB, captioned; what cannot be used is named. The source is only read.
    """
    from finetune.cli import data_view
    from finetune.data import dataset

    made = dataset.prepare(
        source,
        out,
        trigger=trigger,
        class_word=class_word,
        kind=_kind(kind),
        template=template,
        license=license,
        source_note=source_note,
        background=_colour(background),
        allow_uncaptioned=allow_uncaptioned,
    )
    if as_json:
        typer.echo(json.dumps(data_view.prepared_json(made), indent=2, ensure_ascii=False))
    else:
        data_view.show_prepared(made, out)


def check(
    path: Annotated[Path, typer.Argument(help="A folder of images, or a prepared dataset.")],
    trigger: Trigger = None,
    class_word: ClassWord = None,
    template: Template = None,
    base: Annotated[str | None, typer.Option(help="Count tokens, and size buckets, as this base does.")] = None,
    resolution: Annotated[int | None, typer.Option(help="px.", show_default="the base's, else 512", min=16)] = None,
    max_aspect: Annotated[float, typer.Option(help="Of the most extreme bucket.", min=1, max=4)] = MAX_ASPECT,
    allow_uncaptioned: AllowUncaptioned = False,
    as_json: AsJson = False,
) -> None:
    """Show what would be trained on, and what would not.

    Every file used or rejected with its reason, every caption as the model will read it. Exit 2 when anything is amiss.
    """
    from finetune.cli import data_view
    from finetune.data import dataset

    found = dataset.audit(
        path, trigger=trigger, class_word=class_word, template=template, allow_uncaptioned=allow_uncaptioned
    )
    view = data_view.view(found, base, resolution, max_aspect)
    if as_json:
        typer.echo(json.dumps(data_view.audit_json(found, view), indent=2, ensure_ascii=False))
    else:
        data_view.show_audit(found, view)
    if found.problems or found.rejected:
        raise DataError(*data_view.verdict(path, found))


def _kind(written: str) -> "Kind":
    match written:
        case "" | "product" | "style":
            return written
    raise DataError(f"--kind {written} is not known", "product or style")


def _colour(written: str) -> "Colour":
    name = {"white": "#ffffff", "black": "#000000"}.get(written.lower(), written)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", name):
        raise DataError(f"--background {written} is not a colour", "white, black or #rrggbb")
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
