"""What `prepare` and `check` found, as tables and as JSON. Imports the images' libraries."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from finetune.data.audit import Audit, next_step
from finetune.data.example import Dataset, Example
from finetune.data.folder import Rejected
from finetune.data.rights.provenance import LicenceSum, in_words
from finetune.data.text.captions import CaptionNote
from finetune.data.text.wording import CaptionOrigin
from finetune.errors import Action
from finetune.planning.preview import Preview, Previewed, by_text, trained_sizes
from finetune.reporting.markup import escape

# --- json -----------------------------------------------------------------------------------------------------------


def audit_json(found: Audit, view: Preview) -> dict[str, object]:
    return {
        "seen": found.seen,
        "used": len(found.used),
        "files": found.files,
        "caption_files": found.captions,
        "mask_files": found.masks,
        "masked": found.masked,
        "ignored": list(found.ignored),
        "prepared": found.prepared,
        "caption_source": found.caption_source,
        "origins": found.origins,
        "several_captions": sum(len(e.captions) > 1 for e in found.used),
        "trigger": {"trigger": found.card.trigger, "with": found.coverage.having, "of": found.coverage.of},
        "class_word": found.card.class_word,
        "licenses": licenses_json(found.licenses),
        "resolution": view.resolution,
        "stride": view.stride,
        "problems": list(found.problems),
    }


def audit_rows(found: Audit, view: Preview) -> dict[str, Iterable[object]]:
    """What may be as many as there are files."""
    return {
        "rejected": (r._asdict() for r in found.rejected),
        "images": map(_row_json, view.rows),
        "notes": (n._asdict() for n in (*found.notes, *view.notes)),
    }


def _row_json(row: Previewed) -> dict[str, object]:
    example, bucket, loss, enlargement = row.placed
    return {
        "file": example.name,
        "caption": example.caption,
        "caption_by": example.origin,
        "license": example.attributes.license,
        "author": example.attributes.author,
        "wordings": list(example.wordings or (example.caption,)),
        "width": example.size.width,
        "height": example.size.height,
        "bucket": list(bucket),
        "crop_loss": round(loss, 4),
        "enlargement": round(enlargement, 3),
        "tokens": row.tokens,
        "truncated": row.truncated,
        "mask": example.mask.path.name if example.mask else None,
    }


def licenses_json(found: Sequence[LicenceSum]) -> list[dict[str, object]]:
    return [one._asdict() | {"authors": list(one.authors)} for one in found]


def prepared_json(made: Dataset) -> dict[str, object]:
    card = made.card
    return {
        "path": str(made.root),
        "seen": card.seen,
        "used": len(made.examples),
        "rejected": [r._asdict() for r in card.rejected],
        "changes": card.changes,
        "masked": made.masked,
        "captions": {origin: len(some) for origin, some in _by_origin(made.examples).items()},
        "trigger": {"trigger": made.trigger, "with": made.coverage.having, "of": made.coverage.of},
        "licenses": licenses_json(made.licenses),
        "fingerprint": made.fingerprint,
    }


# --- for people -----------------------------------------------------------------------------------------------------


ROWS, LINES = 200, 50
"""images, and files or remarks of one sort, up to which each has a line; of more, counts and what is out of the way"""


def show_audit(found: Audit, view: Preview, every_row: bool = False) -> None:
    console = Console(highlight=False, emoji=False)
    if view.rows and (every_row or len(view.rows) <= ROWS):
        console.print(_image_table(view, view.rows))
    elif view.rows:
        _show_summary(console, view)
    _show_rejected(console, found.rejected)
    _show_notes(console, (*found.notes, *view.notes))
    for problem in found.problems:
        console.print(f"[red]problem[/red]  {escape(problem)}", soft_wrap=True)
    console.print(f"[dim]captions: {_caption_line(found)}{_ignored_line(found)}[/dim]", soft_wrap=True)
    if found.masked:
        console.print(f"masks: {found.masked} of {len(found.used)} images have one; only what is white in it is learnt")
    if found.card.trigger:
        having, of = found.coverage
        console.print(f"trigger {escape(repr(found.card.trigger))} in {having} of {of} captions")
    _show_licenses(console, found.licenses, found.used)


def _show_licenses(console: Console, found: Sequence[LicenceSum], examples: Sequence[Example]) -> None:
    """Whose the pictures are, where anything is known of it."""
    if said := in_words(found):
        console.print(f"licences: {escape(said)}", soft_wrap=True)
    if filed := sum(bool(e.attributes.consent) for e in examples):
        console.print(f"consent is recorded for {filed} of {len(examples)} pictures")


def identity_line(found: Audit) -> str:
    """Every file accounted for."""
    told = f"seen {found.seen} = used {len(found.used)} + rejected {len(found.rejected)}"
    if not found.masks:
        return told
    rest = {"captions": found.captions, "masks": found.masks, "ignored": len(found.ignored)}
    return f"{told}; files {found.files} = seen {found.seen}" + "".join(f" + {name} {n}" for name, n in rest.items())


def _show_summary(console: Console, view: Preview) -> None:
    """Sizes with their counts, and the images to look at."""
    console.print(_size_table(view))
    notable = [row for row in view.rows if row.notable]
    console.print(f"{len(view.rows)} images, {len(notable)} of them with a remark (--all lists every image)")
    if notable:
        console.print(_image_table(view, notable[:LINES]))
    if len(notable) > LINES:
        console.print(f"[dim]and {len(notable) - LINES} more with a remark[/dim]")


def _size_table(view: Preview) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"trained at {view.resolution}", no_wrap=True)
    for name in ("images", "cropped on average", "cropped at most"):
        table.add_column(name, justify="right", no_wrap=True)
    for size in trained_sizes(view):
        table.add_row(
            "x".join(map(str, size.bucket)), str(size.pictures), f"{size.mean_loss:.0%}", f"{size.most_loss:.0%}"
        )
    return table


def _image_table(view: Preview, rows: Sequence[Previewed]) -> Table:
    counted = any(row.tokens is not None for row in view.rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("final caption", overflow="fold", ratio=1)
    for name in ("size", f"trained at {view.resolution}", "cropped", *(["tokens"] if counted else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        example, bucket, loss, _ = row.placed
        caption = escape(example.caption) or "[dim](empty)[/dim]"
        if (more := len(example.captions) - 1) > 0:
            caption += f" [dim](and {more} more caption{'s' * (more > 1)})[/dim]"
        if example.origin == "model":
            caption += " [dim](by a model)[/dim]"
        if row.truncated:
            caption += f" [red](lost: {escape(row.truncated)})[/red]"
        cells = [escape(example.name), caption, "x".join(map(str, example.size)), "x".join(map(str, bucket))]
        table.add_row(*cells, f"{loss:.0%}", *([str(row.tokens)] if counted else []))
    return table


def _show_rejected(console: Console, rejected: Sequence[Rejected], number: int | None = None) -> None:
    """number: of all of them, where these are the first."""
    for r in rejected[:LINES]:
        console.print(f"[red]rejected[/red] {escape(r.file)}: {r.reason}: {escape(r.detail)}", soft_wrap=True)
    if (more := (number or len(rejected)) - LINES) > 0:
        counts = ", ".join(f"{reason}: {n}" for reason, n in Counter(r.reason for r in rejected[LINES:]).most_common())
        console.print(f"[red]rejected[/red] {more} more ({counts})")


def _show_notes(console: Console, notes: Iterable[CaptionNote]) -> None:
    """Notes of the same text on one line; those on the whole dataset first, where there are many."""
    grouped = list(by_text(notes).items())
    if len(grouped) > LINES:
        grouped.sort(key=lambda one: -len(one[1]) if one[1] else -math.inf)
    for text, names in grouped[:LINES]:
        where = f": {_some(names)}" if names else ""
        console.print(f"[yellow]note[/yellow]     {escape(text + where)}", soft_wrap=True)
    if len(grouped) > LINES:
        console.print(f"[yellow]note[/yellow]     {len(grouped) - LINES} more")


def show_prepared(made: Dataset, understood: Sequence[str] = ()) -> None:
    """understood: what was made of files and folders of other trainers."""
    console, card = Console(highlight=False, emoji=False), made.card
    _show_notes(console, [CaptionNote("", text) for text in understood])
    _show_rejected(console, card.rejected, card.seen - len(made.examples))
    for change, count in card.changes.items():
        console.print(f"[yellow]changed[/yellow]  {escape(change)}: {count} {'image' if count == 1 else 'images'}")
    console.print(f"seen {card.seen} = used {len(made.examples)} + rejected {card.seen - len(made.examples)}")
    if made.masked:
        console.print(f"masks: {made.masked} of {len(made.examples)} images have one")
    for origin, some in _by_origin(made.examples).items():
        console.print(
            f"captions {_ORIGINS[origin]}: {len(some)}, such as {escape(repr(some[0].caption))}", soft_wrap=True
        )
    if several := sum(len(e.captions) > 1 for e in made.examples):
        console.print(f"several captions, shown in turn: {several} {'image' if several == 1 else 'images'}")
    _show_licenses(console, made.licenses, made.examples)
    if card.kind:
        console.print(f"the images show a {card.kind}")


_ORIGINS: dict[CaptionOrigin, str] = {
    "written": "as written", "filename": "from file names", "folder": "from folder names", "model": "by a model",
    "template": "from the template, in several wordings",
}  # fmt: skip


def _by_origin(examples: Iterable[Example]) -> dict[CaptionOrigin, list[Example]]:
    grouped: dict[CaptionOrigin, list[Example]] = {}
    for example in examples:
        grouped.setdefault(example.origin, []).append(example)
    return grouped


def _caption_line(found: Audit) -> str:
    files = found.captions - found.prepared
    return found.caption_source + (f", {files} {'file' if files == 1 else 'files'}" if files else "")


def _ignored_line(found: Audit) -> str:
    return f"; hidden or system files ignored: {escape(_some(found.ignored))}" if found.ignored else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def verdict(path: Path, found: Audit) -> tuple[str, str, Action]:
    """(problem, hint, next step) after the report, which has named everything."""
    counts = [(len(found.problems), "problem"), (len(found.rejected), "rejected file")]
    said = " and ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n)
    trouble = " cannot be trained on as it is" if found.problems else ""
    return f"{path}{trouble}: {said}", *next_step(path, found)
