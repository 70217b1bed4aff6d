"""`finetune prepare` and `finetune check`: a folder of photos, made into a dataset or looked at."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.choices import CaptionLines, CaptionsFrom, FolderNames, Kind, MaskFrom
from finetune.cli.options import AsJson, Output, Quiet, number
from finetune.cli.selecting import (
    CaptionColumn,
    IgnoreColumn,
    ImageColumn,
    Limit,
    Link,
    Sources,
    Split,
    Subset,
    Where,
    selection,
)
from finetune.errors import DataError, RunError
from finetune.recipe import Data

if TYPE_CHECKING:
    from finetune.data.audit import Audit
    from finetune.data.colours import Colour
    from finetune.pages.dataset import NextStep
    from finetune.planning.preview import Preview

MAX_ASPECT: float = Data.model_fields["max_aspect"].default

Trigger = Annotated[
    str | None, typer.Option(help="A rare word that will stand for your product or style in prompts, such as sks.")
]
ClassWord = Annotated[str | None, typer.Option(help="What the product is, in one common word: mug, shoe, dog.")]
KindOption = Annotated[
    Kind | None,
    typer.Option("--kind", help="What the images show.", show_default="product, with a class word"),
]
Template = Annotated[
    str | None,
    typer.Option(help="The one caption for images that have none.", show_default="varied wordings, such as "
                 "'a photo of {trigger} {class_word}'"),
]  # fmt: skip
CaptionsFromOption = Annotated[
    CaptionsFrom,
    typer.Option(
        "--captions-from",
        "--caption-from",
        help="Captions that are in no file of captions come from file names that are words (bell.png: 'a bell, sks "
        "style'), from descriptions in the pictures (EXIF, IPTC, XMP, PNG text), else from the template.",
    ),
]
FolderNamesOption = Annotated[
    FolderNames,
    typer.Option(
        "--folder-names",
        help="What '10_sks mug' says as a folder's name: kohya's repeats, which weigh its pictures, and a caption for "
        "those without one; or nothing (plain).",
        show_default="repeats, unless the number looks like part of a name",
    ),
]
AllowUncaptioned = Annotated[
    bool,
    typer.Option("--allow-uncaptioned", help="Give the template to images without a caption, and to all of a style."),
]
CaptionLinesOption = Annotated[
    CaptionLines,
    typer.Option(
        "--caption-lines", help="What the lines of a caption file are: captions shown by turns, or one caption, joined."
    ),
]
License = Annotated[
    str, typer.Option(help="Licence of images that have none of their own (column, .license file), as SPDX names it.")
]
Author = Annotated[str, typer.Option(help="Author of images that have none of their own.")]
RequireLicense = Annotated[
    list[str] | None,
    typer.Option(
        "--require-license",
        metavar="SPDX,...",
        help="Use images of these licences only and reject the others: CC0-1.0,CC-BY-* (any version). Training keeps "
        "to it.",
    ),
]
CaptionsOf = Annotated[
    Path | None,
    typer.Option(
        "--captions-of",
        metavar="DATASET",
        help="Take captions that a person or a model wrote in a dataset prepared before, for images that are the same.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(prepare)
    app.command()(check)


def prepare(
    ctx: typer.Context,
    source: Sources,
    out: Annotated[Path, typer.Option(help="Folder for the dataset; it must be new or empty.")],
    trigger: Trigger = None,
    class_word: ClassWord = None,
    kind: KindOption = None,
    template: Template = None,
    license: License = "",
    author: Author = "",
    require_license: RequireLicense = None,
    source_note: Annotated[str, typer.Option("--source", help="Origin of the images, recorded in the dataset.")] = "",
    background: Annotated[
        str, typer.Option(help="Colour behind transparent pixels: white, black or #rrggbb.")
    ] = "white",
    mask_from: Annotated[
        MaskFrom,
        typer.Option(
            "--mask-from",
            help="Where masks come from: mask files beside the images (NAME-mask.png, "
            "NAME-masklabel.png, masks/NAME.png), or transparency as well.",
        ),
    ] = "files",
    captions_from: CaptionsFromOption = "auto",
    folder_names: FolderNamesOption = "auto",
    allow_uncaptioned: AllowUncaptioned = False,
    caption_lines: CaptionLinesOption = "each",
    captions_of: CaptionsOf = None,
    split: Split = "",
    subset: Subset = "",
    image_column: ImageColumn = "",
    caption_column: CaptionColumn = "",
    ignore_column: IgnoreColumn = None,
    limit: Limit = None,
    where: Where = None,
    link: Link = False,
    caption_with: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="Then caption images that have no caption, as `finetune caption` does: `pocket` (bundled), a "
            "vocabulary file, or a model that describes pictures (its folder or hub id).",
        ),
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a dataset from photos: folders, archives, tables, the hub.

    Photos are turned upright, converted to RGB and captioned. Every file is used, or rejected with its reason. If the
    captioner of --caption-with fails or is stopped, the dataset stays, and `finetune caption OUT` goes on. Archives and
    tables are read into a hidden folder beside the dataset; if that is interrupted, the same call goes on there.
    """
    from rich.console import Console

    from finetune.cli import data_view, wording
    from finetune.cli.watching import watched
    from finetune.data.prepare import preparing

    output = Output(as_json, quiet)
    work = preparing(
        source,
        out,
        trigger=trigger,
        class_word=class_word,
        kind=kind or "",
        template=template,
        license=license,
        author=author,
        require_license=require_license or (),
        source_note=source_note,
        background=_colour(background),
        mask_from=mask_from,
        captions_from=captions_from,
        allow_uncaptioned=allow_uncaptioned,
        caption_lines=caption_lines,
        captions_of=captions_of,
        captioned_next=bool(caption_with),
        folder_names=folder_names,
        selection=selection(split, subset, image_column, caption_column, ignore_column, limit, where),
        link=link,
    )
    made = watched(work, Console(highlight=False), output)
    if caption_with:
        from finetune.cli import captioning_view

        made = captioning_view.caption_prepared(made, caption_with, output)
    understood = tuple(wording.flags(text, ctx.command) for text in made.understood)
    if output.details:
        data_view.show_prepared(made, understood)
    output.json(data_view.prepared_json(made) | {"notes": understood})
    output.result(f"wrote {out}: {len(made.examples)} images" + ("" if quiet else f"   next: finetune check {out}"))


def check(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="A folder of images, or a prepared dataset.")],
    trigger: Trigger = None,
    class_word: ClassWord = None,
    template: Template = None,
    kind: KindOption = None,
    captions_from: CaptionsFromOption = "auto",
    caption_lines: CaptionLinesOption = "each",
    folder_names: FolderNamesOption = "auto",
    base: Annotated[
        str | None, typer.Option(help="Base model to check against: counts caption tokens and fits the sizes.")
    ] = None,
    resolution: Annotated[
        int | None, number("data.resolution", help="Training resolution in px.", show_default="the base's, else 512")
    ] = None,
    max_aspect: Annotated[
        float, number("data.max_aspect", help="Largest width:height ratio; longer images are cropped to it.")
    ] = MAX_ASPECT,
    allow_uncaptioned: AllowUncaptioned = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page that shows each image as it will be cropped, with its caption."
        ),
    ] = None,
    every_row: Annotated[
        bool, typer.Option("--all", help="List every image; of more than 200 only those to look at are listed.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List every image, its final caption, and what is rejected.

    The caption shown is the one the model is trained on. Of more than 200 images sizes are counted, and those listed
    that are to be looked at; --all or --json lists every one. A file that is unchanged since an earlier command is not
    decoded again. Exit code 2 means that something must be corrected first.
    """
    from rich.console import Console

    from finetune.cli import data_view, wording
    from finetune.cli.watching import watched
    from finetune.data.audit import auditing
    from finetune.data.captions import clean_words
    from finetune.data.folder import Rules
    from finetune.planning.preview import preview

    if html:
        _refuse_target(html, path)
    words = clean_words(trigger, class_word, template, kind or "", captions_from, allow_uncaptioned, caption_lines)
    output = Output(as_json, quiet)
    found = watched(auditing(path, words, Rules(folder_names=folder_names)), Console(highlight=False), output)
    found = replace(
        found,
        problems=tuple(wording.flags(problem, ctx.command) for problem in found.problems),
        notes=tuple(note._replace(text=wording.flags(note.text, ctx.command)) for note in found.notes),
    )
    view = preview(found, base, resolution, max_aspect)
    if output.details:
        data_view.show_audit(found, view, every_row)
    error = DataError(*data_view.verdict(path, found)) if found.problems or found.rejected else None
    if html:
        shown = _write_page(html, found, view, _next_step(error, path, ctx))
    told = data_view.audit_json(found, view) | ({"page": str(html)} if html else {})
    output.json_rows(told, data_view.audit_rows(found, view))
    output.result(data_view.identity_line(found))
    if html:
        output.result(f"wrote {html}: {shown} as they will be cropped; open it in a browser")
    if error:
        raise error


def _refuse_target(html: Path, path: Path) -> None:
    from finetune.data.folder import locate_images
    from finetune.pages.dataset import refuse_target

    refuse_target(html, locate_images(path))


def _next_step(error: DataError | None, path: Path, ctx: typer.Context) -> "NextStep":
    """What the page tells its reader to do, in the words of this program."""
    from finetune.cli import wording
    from finetune.pages.dataset import NextStep

    again = shlex.join(["finetune", "check", str(path)])
    if error is None or error.action is None:
        return NextStep("", "", again)
    program = ctx.find_root().command
    return NextStep(wording.flags(error.hint, ctx.command), wording.written(error.action, program), again)


def _write_page(html: Path, found: "Audit", view: "Preview", step: "NextStep") -> str:
    """The page of what was found; says how many images it shows."""
    from finetune.pages.dataset import dataset_page
    from finetune.pages.html import write_page

    page = dataset_page(found, view, step)
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_page(page.text, html)
    except OSError as e:
        raise RunError(f"cannot write {html}: {e.strerror or e}", "name another file for the page") from e
    return f"{page.shown} images" if page.shown == page.of else f"{page.shown} of {page.of} images"


def _colour(written: str) -> "Colour":
    name = {"white": "#ffffff", "black": "#000000"}.get(written.lower(), written)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", name):
        raise DataError(f"--background {written} is not a colour", "write white, black or #rrggbb")
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
