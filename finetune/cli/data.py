"""`finetune prepare` and `finetune check`: a folder of photos, made into a dataset or looked at."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune import dataset, families, images
from finetune.dataset import Audit, Dataset, Kind, Note, Placed, Rejected
from finetune.errors import DataError

RESOLUTION_PX = 512
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
    """Make a dataset from a folder of photos: upright, RGB, captioned. The source is only read."""
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
        typer.echo(json.dumps(_prepared_json(made), indent=2, ensure_ascii=False))
    else:
        _show_prepared(made, out)


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
    """Show what would be trained on: every file used or rejected, every caption as the model will read it."""
    found = dataset.audit(
        path, trigger=trigger, class_word=class_word, template=template, allow_uncaptioned=allow_uncaptioned
    )
    view = _view(found, base, resolution, max_aspect)
    if as_json:
        typer.echo(json.dumps(_audit_json(found, view), indent=2, ensure_ascii=False))
    else:
        _show_audit(found, view)
    if found.problems or found.rejected:
        raise DataError(*_verdict(path, found))


class Shown(NamedTuple):
    """An image as `check` lists it; tokens are None where no base was named."""

    placed: Placed
    tokens: int | None
    truncated: str


@dataclass(frozen=True)
class View:
    resolution: int
    stride: int
    rows: Sequence[Shown]

    @property
    def notes(self) -> list[Note]:
        scaled = [
            Note(r.placed.example.name, f"upscaled {r.placed.enlargement:.1f} times")
            for r in self.rows
            if r.placed.enlargement > 1
        ]
        lost = [
            Note(r.placed.example.name, f"caption too long: {r.truncated!r} is lost") for r in self.rows if r.truncated
        ]
        return scaled + lost


def _view(found: Audit, base: str | None, resolution: int | None, max_aspect: float) -> View:
    facts = families.detect(base) if base else None
    counter = families.tokenizer(base) if base else None
    px = resolution or (facts.resolution if facts else RESOLUTION_PX)
    stride = facts.stride if facts else images.usual_stride(px)
    placed = dataset.place(found.used, images.plan_buckets(px * px, stride, max_aspect))
    counts = [counter.lost(p.example.caption) if counter else (None, "") for p in placed]
    return View(px, stride, [Shown(p, *count) for p, count in zip(placed, counts, strict=True)])


# --- json -----------------------------------------------------------------------------------------------------------


def _audit_json(found: Audit, view: View) -> dict[str, object]:
    return {
        "seen": found.seen,
        "used": len(found.used),
        "rejected": [r._asdict() for r in found.rejected],
        "files": found.files,
        "caption_files": found.captions,
        "ignored": list(found.ignored),
        "prepared": found.prepared,
        "caption_source": found.caption_source,
        "trigger": {"trigger": found.card.trigger, "with": found.coverage.having, "of": found.coverage.of},
        "class_word": found.card.class_word,
        "resolution": view.resolution,
        "stride": view.stride,
        "images": [_row_json(row) for row in view.rows],
        "notes": [n._asdict() for n in (*found.notes, *view.notes)],
        "problems": list(found.problems),
    }


def _row_json(row: Shown) -> dict[str, object]:
    example, bucket, loss, enlargement = row.placed
    return {
        "file": example.name,
        "caption": example.caption,
        "width": example.size.width,
        "height": example.size.height,
        "bucket": list(bucket),
        "crop_loss": round(loss, 4),
        "enlargement": round(enlargement, 3),
        "tokens": row.tokens,
        "truncated": row.truncated,
    }


def _prepared_json(made: Dataset) -> dict[str, object]:
    card = made.card
    return {
        "path": str(made.root),
        "seen": card.seen,
        "used": len(made.examples),
        "rejected": [r._asdict() for r in card.rejected],
        "changes": card.changes,
        "trigger": {"trigger": made.trigger, "with": made.coverage.having, "of": made.coverage.of},
        "fingerprint": made.fingerprint,
    }


# --- for people -----------------------------------------------------------------------------------------------------


def _show_audit(found: Audit, view: View) -> None:
    console = Console(highlight=False)
    if view.rows:
        console.print(_image_table(view))
    _show_rejected(console, found.rejected)
    _show_notes(console, (*found.notes, *view.notes))
    for problem in found.problems:
        console.print(f"[red]problem[/red]  {escape(problem)}", soft_wrap=True)
    console.print(
        f"seen {found.seen} = used {len(found.used)} + rejected {len(found.rejected)}"
        f"   [dim](captions: {_caption_line(found)}{_ignored_line(found)})[/dim]",
        soft_wrap=True,
    )
    if found.card.trigger:
        having, of = found.coverage
        console.print(f"trigger {escape(repr(found.card.trigger))} in {having} of {of} captions")


def _image_table(view: View) -> Table:
    counted = any(row.tokens is not None for row in view.rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("caption trained on", overflow="fold", ratio=1)
    for name in ("size", f"bucket at {view.resolution}", "cropped", *(["tokens"] if counted else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in view.rows:
        example, bucket, loss, _ = row.placed
        caption = escape(example.caption) or "[dim](empty)[/dim]"
        if row.truncated:
            caption += f" [red](lost: {escape(row.truncated)})[/red]"
        cells = [escape(example.name), caption, "x".join(map(str, example.size)), "x".join(map(str, bucket))]
        table.add_row(*cells, f"{loss:.0%}", *([str(row.tokens)] if counted else []))
    return table


def _show_rejected(console: Console, rejected: Iterable[Rejected]) -> None:
    for r in rejected:
        console.print(f"[red]rejected[/red] {escape(r.file)}: {r.reason}: {escape(r.detail)}", soft_wrap=True)


def _show_notes(console: Console, notes: Iterable[Note]) -> None:
    """Notes of the same text on one line."""
    grouped: dict[str, list[str]] = {}
    for note in notes:
        grouped.setdefault(note.text, []).append(note.file)
    for text, names in grouped.items():
        where = "" if names == [""] else f": {_some(names)}"
        console.print(f"[yellow]note[/yellow]     {escape(text + where)}", soft_wrap=True)


def _show_prepared(made: Dataset, out: Path) -> None:
    console, card = Console(highlight=False), made.card
    _show_rejected(console, card.rejected)
    for change, count in card.changes.items():
        console.print(f"[yellow]changed[/yellow]  {escape(change)}: {count} {'image' if count == 1 else 'images'}")
    console.print(f"seen {card.seen} = used {len(made.examples)} + rejected {len(card.rejected)}")
    console.print(f'first caption: "{escape(made.examples[0].caption)}"')
    console.print(f"wrote [bold]{escape(str(out))}[/bold]   next: finetune check {escape(str(out))}", soft_wrap=True)


def _caption_line(found: Audit) -> str:
    files = found.captions - found.prepared
    return found.caption_source + (f", {files} {'file' if files == 1 else 'files'}" if files else "")


def _ignored_line(found: Audit) -> str:
    return f"; hidden or system files ignored: {escape(_some(found.ignored))}" if found.ignored else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _verdict(path: Path, found: Audit) -> tuple[str, str]:
    """(problem, hint) after the report, which has named everything."""
    counts = [(len(found.problems), "problem"), (len(found.rejected), "rejected file")]
    said = " and ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n)
    if found.problems:
        return f"{path} cannot be trained on as it is: {said}", "each problem above names its remedy"
    return f"{path}: {said}", f"remove them, or `finetune prepare {path} --out DIR` leaves them out and says so"


def _kind(written: str) -> Kind:
    match written:
        case "" | "product" | "style":
            return written
    raise DataError(f"--kind {written} is not known", "product or style")


def _colour(written: str) -> images.Colour:
    name = {"white": "#ffffff", "black": "#000000"}.get(written.lower(), written)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", name):
        raise DataError(f"--background {written} is not a colour", "white, black or #rrggbb")
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
