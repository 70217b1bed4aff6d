"""Pictures as training sees them, cut to their bucket beside the caption that is learnt with them; the page of `check`.

A page holds at most SHOWN pictures and ROWS_BYTES of them: those with something to look at come first, the others are
counted. Pictures are opened one at a time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image, ImageDraw

from finetune import reading, writing
from finetune.data.audit import Audit
from finetune.data.dataset import Placed
from finetune.data.images.buckets import Bucket, Size, enlargement, fit
from finetune.data.images.decode import open_rgb
from finetune.data.images.diagnose import Reason, Unusable
from finetune.data.masks import mask_cells, open_mask
from finetune.data.quality.advice import LABELS, findings_lines, fixes
from finetune.data.quality.faults import AuditFindings, FaultKind
from finetune.data.rights.licences import shown_licence
from finetune.data.rights.provenance import in_words, public_author
from finetune.data.text.captions import mentions
from finetune.data.text.wording import CaptionOrigin
from finetune.errors import RunError
from finetune.pages.html import inlined, render
from finetune.pages.text import plain_text, shown_text
from finetune.planning.encoders import EncoderReport, encoder_sentences
from finetune.planning.preview import SEEN_ENLARGED, Preview, Previewed, by_text, trained_sizes

SHOWN = 500
ROWS_BYTES = 6_500_000
LINES = 200
"""Problems, rejected files and remarks that a page lists; the others are counted."""
_CARD_PX = 160
WORTH_SAYING = 0.03
"""the share of a picture that may be cut off without a word about it"""
AUTHORS: dict[CaptionOrigin, str] = {
    "written": "by a person", "filename": "from the file name", "folder": "from the folder's name",
    "model": "by a captioning model", "template": "from the template",
}  # fmt: skip
_PIXEL_ART_PX = 96
"""Pictures up to this size are enlarged by whole pixels, which is what is trained on."""
_VEIL = (255, 255, 255, 190)
_FRAME = (214, 40, 40)
_SQUARE_PX, _LIGHT, _DARK, _STILL_SEEN = 6, 255, 205, 0.2
"""of the chequerboard outside of masks: its squares, their greys, and the share of the picture that is still seen"""

REMEDIES: dict[Reason, str] = {
    "zero bytes": "Copy the file again from where it came from.",
    "truncated": "Copy or download it again: the end is missing.",
    "corrupt": "Copy it again, or open it in an image editor and save it anew.",
    "not an image": "Remove it, or fetch the picture again.",
    "unsupported type": "Export a picture as JPEG or PNG; move any other file elsewhere.",
    "animated": "Save the frame that you want as PNG.",
    "too small": "Use a larger original.",
    "extreme aspect": "Crop it to a shape closer to a square.",
    "exact duplicate": "Remove one of the two.",
    "image bomb": "Save it smaller.",
    "link": "Copy the file itself into the folder.",
    "caption without image": "Put the picture back beside it, or remove the caption file.",
    "licence": "Ask for the licence that you need, or use another picture.",
    "licence without image": "Put the picture back beside it, or remove the licence file.",
    "mask without picture": "Put the picture back beside it, or rename it if it is a picture to train on.",
    "control picture": "Move it elsewhere: it is not trained on.",
    "unreadable": "Rename the file, or make it readable for you.",
    "changed": "Check again, and do not change the picture while it runs.",
    "near duplicate": "Nothing: its best copy is kept.",
    "leak": "Train only on pictures that differ from the held-out ones.",
}
"""Reason -> what to do, in general; the detail of a rejected file says it of that file."""
FLAGS = {
    "empty": "empty caption",
    "bare": "trigger missing",
    "lost": "words lost",
    "leak": "looks like a held-out one",
    "copy": "near-duplicate",
    "blurred": "blurred",
    "upscaled": "larger than its detail",
    "border": "plain border",
    "cast": "colour cast",
    "cut": "partly cut off",
    "enlarged": "enlarged",
    "noted": "with a remark",
    "masked": "with a mask",
    "unmasked": "without a mask",
    "filename": "caption from the file name",
    "folder": "caption from the folder's name",
    "model": "caption by a model",
    "template": "caption from the template",
}
"""What a picture may be filtered by -> its words, the most important first."""
_OF_FAULTS: dict[FaultKind, str] = {
    "leak": "leak", "near duplicate": "copy", "blurred": "blurred", "upscaled": "upscaled", "border": "border",
    "colour cast": "cast",
}  # fmt: skip
_LOOK_AT = frozenset(("empty", "bare", "lost", "cut", "enlarged", "noted", "unmasked", *_OF_FAULTS.values()))
"""Flags that are worth a look; who wrote a caption alone is not."""
_REMARKS = {
    "lost": "the caption is too long for the base, and its end is lost",
    "cut": f"more than {WORTH_SAYING:.0%} of the picture is cut off",
    "enlarged": "smaller than the training size: the picture is enlarged and looks soft",
}
_LOST_SHOWN = 160
"""characters of what a base does not read that a card shows"""
_OPEN_FROM = 0.1
"""the share cut off from which on a card shows the whole picture at once"""


class InlinedPicture(NamedTuple):
    """A picture inside the page, or why there is none."""

    source: Markup
    """The `src` of an <img>."""
    size: Size
    """In px."""
    alt: str
    pixels: bool = False
    fault: str = ""
    """Why the file could not be read; then there is no source."""


class DatasetPage(NamedTuple):
    text: str
    shown: int
    """The number of pictures on the page."""
    of: int


class NextStep(NamedTuple):
    """What the reader of the page is told to do, in the words of whoever had it made."""

    hint: str
    """What to do where something is wrong; "" where nothing is."""
    command: str
    """The command for it."""
    list_all: str
    """The command that lists every picture."""
    fix: str = ""
    """The command that repairs what can be repaired."""


class _Row(NamedTuple):
    """A picture with all that its card says."""

    seen: Previewed
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    faults: tuple[tuple[str, str], ...] = ()
    """What each fault is called, and its detail."""


# --- one picture ----------------------------------------------------------------------------------------------------


def cropped(placed: Placed, px: int, trigger: str | None = None, masked: bool = True) -> Markup:
    """A <figure>: the picture as the crop leaves it, its longer side at most px, and beneath it the caption, the
    trigger marked, the file's name and who wrote the caption. A file that cannot be read costs its picture only.
    masked: of a picture with a mask what is outside is dimmed.

    The page's style block needs `{% include "picture.css" %}`.
    """
    shown = _pictures(placed, px, whole=False)
    share = shown.share if masked and shown.masked else None
    picture = shown.kept if share is None else shown.masked
    name, caption = shown_text(placed.example.name), shown_text(placed.example.caption, trigger)
    return Markup(
        render("cropped.html", picture=picture, name=name, caption=caption, row=placed, authors=AUTHORS,
               worth_saying=WORTH_SAYING, share=share)
    )  # fmt: skip


class _Shown(NamedTuple):
    kept: InlinedPicture
    """what is trained on"""
    whole: InlinedPicture | None = None
    """where some of it is cut off the whole picture, with the crop's frame"""
    masked: InlinedPicture | None = None
    """where there is a mask what it shows"""
    share: float = 1.0
    """of what is trained on that the mask covers"""


def _pictures(placed: Placed, px: int, whole: bool = True) -> _Shown:
    name, bucket = plain_text(placed.example.name), placed.bucket
    alt = f"{name}, cut to {bucket.width} x {bucket.height}"
    try:
        image = open_rgb(placed.example.path)
        mask = open_mask(placed.example.mask) if placed.example.mask else None
    except Unusable as e:
        return _Shown(InlinedPicture(Markup(), Size(px, px), alt, fault=f"{e.reason}: {e.detail}"))
    kept = fit(image, bucket)
    kept.thumbnail((px, px), Image.Resampling.LANCZOS)
    shown = _Shown(_inside(kept, px, alt))
    if whole and placed.crop_loss > WORTH_SAYING:
        framed = _framed(image, bucket, px)
        shown = shown._replace(whole=_inside(framed, px, f"{name} as a whole, what is cut off is pale"))
    if mask:
        cells = mask_cells(mask, placed.example.size, bucket, 0.5, False, (kept.height, kept.width))
        masked = _inside(_dimmed(kept, cells), px, f"{name}, outside of its mask a pale chequerboard")
        shown = shown._replace(masked=masked, share=float(cells.mean()))
    return shown


def _dimmed(image: Image.Image, cells: npt.NDArray[np.float32]) -> Image.Image:
    """What is outside of a mask is pale on a chequerboard, as what is transparent is in image editors. cells: (h, w),
    the share of each pixel that is inside."""
    rows, columns = np.indices(cells.shape) // _SQUARE_PX
    board = np.where((rows + columns) % 2, _LIGHT, _DARK)[..., None]
    pixels = np.asarray(image, np.float32)
    outside = _STILL_SEEN * pixels + (1 - _STILL_SEEN) * board
    mixed = cells[..., None] * pixels + (1 - cells[..., None]) * outside
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def _inside(image: Image.Image, px: int, alt: str) -> InlinedPicture:
    return InlinedPicture(inlined(image, px), Size(*image.size), alt, pixels=max(image.size) <= _PIXEL_ART_PX)


def _framed(image: Image.Image, bucket: Bucket, px: int) -> Image.Image:
    """The whole picture, its longer side at most px; what `fit` cuts off is pale, what stays has a frame."""
    scale = enlargement(Size(*image.size), bucket)
    small = image.copy()
    small.thumbnail((px, px), Image.Resampling.LANCZOS)
    per_px = small.width / image.width
    width, height = (round(side / scale * per_px) for side in bucket)
    left, top = (small.width - width) // 2, (small.height - height) // 2
    box = (left, top, min(left + width, small.width), min(top + height, small.height))
    veil = Image.new("RGBA", small.size, _VEIL)
    veil.paste((0, 0, 0, 0), box)
    small.paste(veil, mask=veil)
    ImageDraw.Draw(small).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=_FRAME, width=2)
    return small


# --- the page -------------------------------------------------------------------------------------------------------


def dataset_page(
    found: Audit, preview: Preview, step: NextStep, faults: AuditFindings | None = None,
    encoders: Sequence[EncoderReport] = (),
) -> DatasetPage:  # fmt: skip
    """The page of what `check` found."""
    rows = _rows(found, preview, faults)
    cards = list(_cards(rows, found.card.trigger))
    text = render(
        "dataset.html", found=found, preview=preview, step=step, cards=cards, of=len(rows), notes=_notes(found, rows),
        flags=_flag_counts(rows), sizes=trained_sizes(preview), lines=LINES, remedies=REMEDIES, authors=AUTHORS,
        looked_at=sum(not _LOOK_AT.isdisjoint(row.flags) for row in rows), shown_text=shown_text, plain_text=plain_text,
        worth_saying=WORTH_SAYING, Markup=Markup, origins=_origins(found), captions=faults and faults.captions,
        findings=findings_lines(faults, found.card) if faults else [], fixes=fixes(faults) if faults else [],
        encoders=encoder_sentences(encoders, found.card.trigger), licences=in_words(found.licenses),
    )  # fmt: skip
    return DatasetPage(text, len(cards), len(rows))


def _origins(found: Audit) -> dict[CaptionOrigin, int]:
    """How many captions each author gave, an empty one being nobody's."""
    counts = Counter(example.origin for example in found.used if example.caption)
    return {author: counts[author] for author in AUTHORS}


def _notes(found: Audit, rows: Sequence[_Row]) -> dict[str, list[str]]:
    """Remarks on the dataset and on files, each with the files; what is cut off and lost stands on the cards."""
    flagged = {
        text: [row.seen.placed.example.name for row in rows if flag in row.flags] for flag, text in _REMARKS.items()
    }
    return by_text(found.notes) | {text: names for text, names in flagged.items() if names}


def _rows(found: Audit, preview: Preview, findings: AuditFindings | None) -> list[_Row]:
    """All pictures, those with something to look at first."""
    notes: dict[str, list[str]] = {}
    for note in found.notes:
        notes.setdefault(note.file, []).append(note.text)
    rows = []
    for seen in preview.rows:
        own = tuple(notes.get(seen.placed.example.name, ()))
        faults = findings.faults.get(seen.placed.example.name, ()) if findings else ()
        flags = tuple(_flags(seen, found.card.trigger, own, [fault.kind for fault in faults], found.masked > 0))
        rows.append(_Row(seen, flags, own, tuple((LABELS[fault.kind], fault.detail) for fault in faults)))
    return sorted(rows, key=lambda row: _LOOK_AT.isdisjoint(row.flags))


def _flags(
    seen: Previewed, trigger: str | None, notes: Sequence[str], faults: Sequence[FaultKind] = (), masks: bool = False
) -> Iterator[str]:
    """masks: whether some picture has one."""
    example = seen.placed.example
    present = {
        "empty": not example.caption,
        "bare": bool(trigger and example.caption and not all(mentions(one, trigger) for one in example.captions)),
        "lost": bool(seen.truncated),
        "cut": seen.placed.crop_loss > WORTH_SAYING,
        "enlarged": seen.placed.enlargement >= SEEN_ENLARGED,
        "noted": bool(notes),
        "masked": bool(example.mask),
        "unmasked": masks and not example.mask,
        example.origin: bool(example.caption),
        **{_OF_FAULTS[kind]: True for kind in faults},
    }
    return (flag for flag in FLAGS if present.get(flag))


def _flag_counts(rows: Sequence[_Row]) -> list[tuple[str, str, int]]:
    counts = Counter(flag for row in rows for flag in row.flags)
    return [(flag, words, counts[flag]) for flag, words in FLAGS.items() if counts[flag]]


def _cards(rows: Sequence[_Row], trigger: str | None) -> Iterator[Markup]:
    """The cards of the pictures that the page has room for."""
    room = ROWS_BYTES
    for row in rows[:SHOWN]:
        card = _card(row, trigger)
        room -= len(card.encode("utf-8", "replace"))
        if room < 0:
            return
        yield card


def _card(row: _Row, trigger: str | None) -> Markup:
    example = row.seen.placed.example
    shown = _pictures(row.seen.placed, _CARD_PX)
    return Markup(
        render(
            "dataset_card.html", row=row, placed=row.seen.placed, shown=shown, authors=AUTHORS,
            name=shown_text(example.name), caption=shown_text(example.caption, trigger), open_from=_OPEN_FROM,
            wordings=[shown_text(one, trigger) for one in example.wordings], shown_text=shown_text,
            licence=shown_licence(example.attributes.license), author=public_author(example.attributes.author),
            lost=shown_text(row.seen.truncated, longest=_LOST_SHOWN),
        )
    )  # fmt: skip


def refuse_target(page: Path, root: Path) -> None:
    """Refuses a file that the page of the folder `root` must not be written to.

    Raises:
        RunError: it is a folder, a file that is no such page, or would become one of the dataset's own files.
    """
    hint = "name another file for the page"
    there = reading.exists(page)
    if there and not reading.is_file(page):
        raise RunError(f"cannot write {page}: it is not a file", hint)
    if reading.real_path(page).is_relative_to(reading.real_path(root)):
        raise RunError(f"{page} lies inside the dataset, where every file is checked", "write the page beside it")
    if there and not _is_ours(page):
        raise RunError(f"{page} exists, and is not a page of a dataset", f"{hint}, or remove that one")
    writing.try_file(page, hint)


def _is_ours(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return b'<meta name="finetune-page" content="dataset">' in file.read(2048)
    except OSError:
        return False
