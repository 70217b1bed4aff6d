"""`finetune prepare` and `finetune check`: make a dataset from pictures, and examine one."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.data_options import (
    AllowUncaptioned,
    Author,
    BackgroundColour,
    CaptionLinesOption,
    CaptionsFromOption,
    CaptionsOf,
    CaptionWith,
    ClassImagesOption,
    ClassWord,
    Fix,
    FolderNamesOption,
    HtmlPage,
    KindOption,
    License,
    MaskFromOption,
    RequireLicense,
    SourceNote,
    Template,
    Thresholds,
    Trigger,
)
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
from finetune.errors import DataError, InputError, RunError, action
from finetune.recipe import Data

if TYPE_CHECKING:
    from finetune.data.audit import Audit
    from finetune.data.images.colours import Colour
    from finetune.data.quality.faults import AuditFindings
    from finetune.data.quality.thresholds import AuditThresholds
    from finetune.data.text.wording import CaptionWords
    from finetune.pages.dataset import NextStep
    from finetune.planning.encoders import EncoderReport
    from finetune.planning.preview import Preview

MAX_ASPECT: float = Data.model_fields["max_aspect"].default


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
    source_note: SourceNote = "",
    background: BackgroundColour = "white",
    mask_from: MaskFromOption = "files",
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
    fix: Fix = False,
    threshold: Thresholds = None,
    caption_with: CaptionWith = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a dataset from folders, archives, tables or the hub.

    Images are turned upright, converted to RGB and captioned. Every file is used, or rejected with its reason. Archives
    and tables are first unpacked into a hidden folder beside the dataset; if that is interrupted, run the same command
    again to continue. If the captioner of --caption-with fails or is stopped, the dataset is kept, and `finetune
    caption OUT` continues.
    """
    from rich.console import Console

    from finetune.cli import data_view, wording
    from finetune.cli.watching import noting, watched
    from finetune.data.prepare import preparing

    output = Output(as_json, quiet)
    work = preparing(
        source, out, trigger=trigger, class_word=class_word, kind=kind or "", template=template,
        license=license, author=author, require_license=require_license or (), source_note=source_note,
        background=_colour(background), mask_from=mask_from, captions_from=captions_from,
        allow_uncaptioned=allow_uncaptioned, caption_lines=caption_lines, captions_of=captions_of,
        captioned_next=bool(caption_with), folder_names=folder_names,
        selection=selection(split, subset, image_column, caption_column, ignore_column, limit, where), link=link,
        fix=fix, thresholds=_thresholds(threshold, fix),
    )  # fmt: skip
    unrepaired: list[str] = []
    made = watched(noting(work, unrepaired), Console(highlight=False, emoji=False), output)
    if caption_with:
        from finetune.cli import captioning_view

        made = captioning_view.caption_prepared(made, caption_with, output)
    understood = tuple(wording.flags(text, ctx.command) for text in made.understood)
    if output.details:
        data_view.show_prepared(made, understood)
    output.json(data_view.prepared_json(made) | {"notes": understood} | ({"unrepaired": unrepaired} if fix else {}))
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
        str | None, typer.Option(help="Base model to check against: its training sizes and its token limits.")
    ] = None,
    resolution: Annotated[
        int | None, number("data.resolution", help="Training resolution in px.", show_default="the base's, else 512")
    ] = None,
    max_aspect: Annotated[
        float, number("data.max_aspect", help="Largest width:height ratio; longer images are cropped to it.")
    ] = MAX_ASPECT,
    allow_uncaptioned: AllowUncaptioned = False,
    class_images: ClassImagesOption = None,
    threshold: Thresholds = None,
    html: HtmlPage = None,
    every_row: Annotated[bool, typer.Option("--all", help="List every image, even of more than 200.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List every image, its final caption, and what is rejected.

    The caption shown is the one that the model is trained on. The audit below the list reports what harms training:
    near-duplicates, blur, borders, one background, words that occur in every caption. With more than 200 images, sizes
    are counted and only images with a remark are listed; --all or --json lists every one. Files that have not changed
    since an earlier command are not decoded again. Exit code 2 means that something must be corrected first.
    """
    from rich.console import Console

    from finetune.cli import data_view, findings_view
    from finetune.cli.watching import watched
    from finetune.data.audit import auditing
    from finetune.data.folder import Rules
    from finetune.data.quality.faults import comparing, find_faults
    from finetune.data.quality.thresholds import read_thresholds
    from finetune.data.text.captions import clean_words
    from finetune.planning.encoders import encoder_reports
    from finetune.planning.preview import preview

    thresholds = read_thresholds(threshold or ())
    if html:
        _refuse_target(html, path)
    words = clean_words(trigger, class_word, template, kind or "", captions_from, allow_uncaptioned, caption_lines)
    output = Output(as_json, quiet)
    found = watched(
        auditing(path, words, Rules(folder_names=folder_names)), Console(highlight=False, emoji=False), output
    )
    found = _with_flags(found, ctx)
    view = preview(found, base, resolution, max_aspect)
    faults = find_faults(found, view.resolution, thresholds)
    if class_images:
        leaks = watched(comparing(found, class_images, thresholds), Console(highlight=False), output)
        faults = replace(faults, class_images=leaks)
    encoders = encoder_reports(base, found.shown, found.card.trigger) if base else []
    fix = _repair(ctx, path, words, threshold or []) if (would := findings_view.fix_line(found, faults)) else ""
    if output.details:
        data_view.show_audit(found, view, every_row)
        findings_view.show_findings(found, faults, encoders)
    error = DataError(*data_view.verdict(path, found)) if found.problems or found.rejected else None
    if html:
        step = _next_step(error, path, ctx)._replace(fix=fix)
        shown = _write_page(html, found, view, step, faults, encoders)
    told = data_view.audit_json(found, view) | findings_view.findings_json(found, faults, encoders)
    rows = findings_view.with_faults(data_view.audit_rows(found, view), faults)
    output.json_rows(told | ({"page": str(html)} if html else {}), rows)
    would = f"`{fix}` would {would}" if output.details and fix else ""
    page = f"wrote {html}: {shown} as they will be cropped; open it in a browser" if html else ""
    for line in filter(None, (would, data_view.identity_line(found), page)):
        output.result(line)
    if error:
        raise error


def _with_flags(found: "Audit", ctx: typer.Context) -> "Audit":
    """What is said of it names this program's own options."""
    from finetune.cli import wording

    return replace(
        found,
        problems=tuple(wording.flags(problem, ctx.command) for problem in found.problems),
        notes=tuple(note._replace(text=wording.flags(note.text, ctx.command)) for note in found.notes),
    )


def _repair(ctx: typer.Context, path: Path, words: "CaptionWords", thresholds: Sequence[str]) -> str:
    """The command that repairs what was found just so."""
    from finetune.cli import wording

    step = action(
        "prepare", source=path, out="DIR", trigger=words.trigger, class_word=words.class_word, kind=words.kind,
        template=words.template, captions_from=words.captions_from if words.captions_from != "auto" else "",
        allow_uncaptioned=words.allow_uncaptioned, fix=True,
    )  # fmt: skip
    own = [word for one in thresholds for word in ("--threshold", one)]
    return shlex.join([*shlex.split(wording.written(step, ctx.find_root().command)), *own])


def _thresholds(given: list[str] | None, fix: bool) -> "AuditThresholds":
    """Raises InputError: they would have no effect."""
    from finetune.data.quality.thresholds import read_thresholds

    if given and not fix:
        raise InputError("`threshold` has no effect without `fix`, whose repairs it sets", "add `fix`")
    return read_thresholds(given or ())


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


def _write_page(
    html: Path, found: "Audit", view: "Preview", step: "NextStep", faults: "AuditFindings",
    encoders: "Sequence[EncoderReport]",
) -> str:  # fmt: skip
    """The page of what was found; says how many images it shows."""
    from finetune.pages.dataset import dataset_page
    from finetune.pages.html import write_page

    page = dataset_page(found, view, step, faults, encoders)
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_page(page.text, html)
    except OSError as e:
        raise RunError(f"cannot write {html}: {e.strerror or e}", "name another file for the page") from e
    return f"{page.shown} images" if page.shown == page.of else f"{page.shown} of {page.of} images"


def _colour(written: str) -> "Colour":
    name = {"white": "#ffffff", "black": "#000000"}.get(written.lower(), written)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", name):
        raise DataError(f"--background {written} is not a known colour", "write white, black or #rrggbb")
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
