"""Writes a prepared dataset: an imagefolder with final captions and dataset.toml."""

import hashlib
import io
import json
import posixpath
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from finetune import reading, writing
from finetune.choices import CaptionLines, CaptionsFrom, FolderNames, MaskFrom
from finetune.data import folder
from finetune.data.attributes import cells_of
from finetune.data.audit import Audit
from finetune.data.dataset import reading_dataset
from finetune.data.examine import MANY
from finetune.data.example import CARD, Dataset, DatasetCard, Example
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rules
from finetune.data.images import costs, decode
from finetune.data.images.colours import WHITE, Colour, colour_name
from finetune.data.images.decode import ImageInfo
from finetune.data.images.signatures import SUFFIXES
from finetune.data.images.workers import in_order, worker_count
from finetune.data.prepared_masks import with_alpha, write_mask
from finetune.data.quality.repairs import repairing
from finetune.data.quality.thresholds import USUAL_THRESHOLDS, AuditThresholds
from finetune.data.record import Record, Seen, file_stamp
from finetune.data.rights.licences import Rights
from finetune.data.rights.provenance import counted, read_rights, sums
from finetune.data.sources.gather import SourceFolder, complaint_of, gathering
from finetune.data.sources.links import Linking
from finetune.data.sources.names import Named, understood
from finetune.data.sources.staging import remove_staged, staging, staging_folder
from finetune.data.sources.tables import ALL, Selection, refuse_unused
from finetune.data.text import captions
from finetune.data.text.caption_files import TABLE
from finetune.data.text.wording import CaptionWords, DatasetKind
from finetune.errors import DataError, RunError
from finetune.events import Advanced, Event, Note, Stage, quietly
from finetune.saving import flush_files, is_leftover, remove_leftovers, write_bytes

SAID_EVERY = 100
MOST_LISTED = 1000
"""rejected files in dataset.toml, which is read by every command; how many there were it says as well"""
SPLIT_WORDS = "training|train|validation|valid|val|dev|testing|test|evaluation|eval"
"""Names by which `datasets` splits a folder: of a.jpg and train-1.jpg it would load one and drop the other."""


class _Written(NamedTuple):
    """A picture of the new dataset."""

    name: str
    stamp: str
    seen: Seen


def preparing(
    source: Named | Sequence[Named],
    out: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    kind: DatasetKind = "",
    template: str | None = None,
    license: str = "",
    author: str = "",
    require_license: Sequence[str] = (),
    source_note: str = "",
    background: Colour = WHITE,
    captions_from: CaptionsFrom = "auto",
    allow_uncaptioned: bool = False,
    caption_lines: CaptionLines = "each",
    captions_of: Path | None = None,
    captioned_next: bool = False,
    folder_names: FolderNames = "auto",
    mask_from: MaskFrom = "files",
    min_side_px: int = MIN_SIDE_PX,
    max_aspect: float = MAX_ASPECT,
    selection: Selection = ALL,
    link: bool = False,
    fix: bool = False,
    thresholds: AuditThresholds = USUAL_THRESHOLDS,
) -> Generator[Event, None, Dataset]:
    """Writes an imagefolder with final captions and dataset.toml to `out`, in full or not at all; tells how far it is.

    Images that need no change are copied byte for byte, or with `link` linked, others written as PNG. Sources are only
    read: folders, archives, tables, data sets of the hub; a text may carry a weight, as in "photos:2". selection: what
    is taken of tables. Masks are written upright as grey PNGs; with mask_from = "alpha" transparency is a mask, too.
    The card of the result lists the rejected files. captioned_next: a model captions the result next, so that lacking
    captions are no problem yet; whoever reads it later finds them, should they still be lacking. fix: carries out the
    repairs that the audit names, from these thresholds on.

    Raises:
        DataError: a source has problems, or `out` is not empty or lies inside a source.
        RunError: `out` cannot be written.
    """
    sources = understood(source)
    refuse_unused(sources, selection)
    for place in [one.path for one in sources if not one.hub]:
        _refuse_out(place, out)
    writing.try_folder(out)
    words = captions.clean_words(
        trigger, class_word, template, kind, captions_from, allow_uncaptioned or captioned_next, caption_lines
    )
    rights = read_rights(license, author, require_license)
    rules = Rules(min_side_px, max_aspect, background, True, rights, captions_of, folder_names)
    parts = []
    for one in sources:
        parts.append(SourceFolder(one, (yield from staging(one, selection, out))))
    report = yield from gathering(parts, words, rules)
    if report.problems:
        raise DataError(*complaint_of(parts, report))
    if mask_from == "alpha":
        report = with_alpha(report)
    yield from (Note(note.text) for note in report.provenance)
    if fix:
        report = yield from repairing(report, thresholds)
    card = report.card.model_copy(
        update={
            "kind": kind or report.card.kind,
            "template": words.template or report.card.template,
            "allow_uncaptioned": allow_uncaptioned or report.card.allow_uncaptioned,
            "license": rights.license or report.card.license,
            "author": rights.author or report.card.author,
            "require_license": rights.required or report.card.require_license,
            "source": source_note or report.card.source,
            "background": colour_name(background),
        }
    )
    yield from _write(report, card, out, background, Linking(link, staging_folder(out)))
    remove_staged(out)  # the dataset is whole, whatever reading it says
    read_as_meant = report.understood
    del report  # of very many pictures it takes as much as what is read now
    made = yield from reading_dataset(out, CaptionWords(allow_uncaptioned=captioned_next))
    return replace(made, understood=read_as_meant)


prepare = quietly(preparing)


def _refuse_out(source: Path, out: Path) -> None:
    if reading.exists(out) and (not reading.is_dir(out) or any(not is_leftover(path.name) for path in out.iterdir())):
        raise DataError(f"{out} is not empty", "choose another `out`, or remove it first")
    if reading.real_path(out).is_relative_to(reading.real_path(source)):
        raise DataError(f"{out} lies inside {source}, which must stay as it is", "choose an `out` outside of it")


def _write(
    report: Audit, card: DatasetCard, out: Path, background: Colour, linking: Linking
) -> Generator[Event, None, None]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as aside:
            folder_aside = Path(aside) / out.name
            written = yield from _fill_folder(report, card, folder_aside, background, linking)
            flush_files(folder_aside)
            if reading.is_dir(out):
                remove_leftovers(out)
                out.rmdir()
            since_ns = folder.now_ns()
            folder_aside.rename(out)
    except OSError as e:
        raise RunError(f"cannot write {out}: {e.strerror or e}", "free some space, or choose another `out`") from e
    _remember(out, written, since_ns)
    if linking.asked:
        yield linking.note(len(report.used))


def _remember(out: Path, written: Sequence[_Written], since_ns: int) -> None:
    """What was just written need not be read to be known."""
    record = Record(out, WHITE)
    for one in written:
        record.keep(one.name, one.stamp, one.seen, since_ns)
    record.save({one.name: one.stamp for one in written})


def _fill_folder(
    report: Audit, card: DatasetCard, root: Path, background: Colour, linking: Linking
) -> Generator[Event, None, list[_Written]]:
    names = _prepared_names([(e.name, report.pictures[e.name].info) for e in report.used])
    for parent in sorted({(root / name).parent for name in names.values()} | {root}):
        parent.mkdir(parents=True, exist_ok=True)

    def write(example: Example) -> _Written:
        seen = report.pictures[example.name]
        with costs.FILES.taken(seen.file_bytes):
            return _write_picture(example, seen.info, root, names[example.name], background, linking)

    def pixels(example: Example) -> int:
        return example.size.width * example.size.height

    if long := len(report.used) >= MANY:
        yield Stage("writing images", len(report.used))
    written, taken = [], set[str]()
    told = any(example.origin != "written" for example in report.used)
    with (
        closing(in_order(write, report.used, pixels, worker_count())) as pictures,
        (root / TABLE).open("w", encoding="utf-8") as table,
    ):
        for done, (example, one) in enumerate(zip(report.used, pictures, strict=True), 1):
            written.append(one)
            attributes = example.attributes._replace(mask="")
            if example.mask:
                mask = write_mask(example.mask, root, one.name, taken)
                written.append(_Written(mask.name, file_stamp(mask.path.stat()), mask.seen))
                attributes = attributes._replace(mask=mask.name)
            cells: dict[str, object] = {"file_name": one.name, "text": example.caption}
            cells |= ({"caption_by": example.origin} if told else {}) | cells_of(attributes)
            table.write(json.dumps(cells, ensure_ascii=False) + "\n")
            if long and done % SAID_EVERY == 0:
                yield Advanced(done)
    card = card.model_copy(
        update={
            "captions": report.caption_source,
            "images": len(report.used),
            "seen": report.seen,
            "licenses": counted(sums((e.attributes for e in report.used), Rights(card.license, card.author))),
            "changes": dict(Counter(note.text for note in report.notes if note.file)),
            "rejected": report.rejected[:MOST_LISTED],
        }
    )
    write_card(card, root)
    return written


def _write_picture(
    example: Example, info: ImageInfo, root: Path, name: str, background: Colour, linking: Linking
) -> _Written:
    """Copied or linked where every reader decodes it alike, else as PNG."""
    target, unchanged = root / name, decode.needs_no_change(info)
    linked = unchanged and linking.made(example.path, target)
    content = decode.contents(target if linked else example.path, example.digest)
    if unchanged:
        if not linked:
            target.write_bytes(content)
        seen = Seen(example.digest, info, "", False)
    else:
        with target.open("wb") as file:
            hashed = _Hashed(file)
            image = decode.decoded(example.path, content, background)
            image = image.crop(info.crop) if info.crop else image
            image.save(cast(BinaryIO, hashed), "PNG", compress_level=3)
        seen = Seen(hashed.digest.hexdigest(), ImageInfo("PNG", "RGB", info.size, 1, False, 8, False), "", False)
    return _Written(name, file_stamp(target.stat()), seen)


class _Hashed(io.RawIOBase):
    """A file that is written in one go, and the digest of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self._file.write(content)


def write_card(card: DatasetCard, root: Path) -> None:
    """dataset.toml of a prepared folder; what is empty is left out.

    Raises:
        RunError: it cannot be written; the one that was there stays.
    """
    import tomlkit

    tables = card.model_dump(mode="json", exclude_none=True)
    tables["rejected"] = [r._asdict() for r in card.rejected]
    said = {k: v for k, v in tables.items() if v not in ([], {}) and v is not False}
    try:
        write_bytes(tomlkit.dumps(said).encode(), root / CARD)
    except OSError as e:
        raise RunError(f"cannot write {root / CARD}: {e.strerror}", "free some space, or make it writable") from e


def _prepared_names(files: Sequence[tuple[str, ImageInfo]]) -> dict[str, str]:
    """Source name -> name in the prepared folder: the same where it can be, unique even where case does not count."""
    prepared: dict[str, str] = {}
    taken: set[str] = set()
    for name, info in files:
        *folders, stem = posixpath.splitext(name.removeprefix("images/"))[0].split("/")
        suffix = posixpath.splitext(name)[1].lower()
        if not decode.needs_no_change(info):
            suffix = ".png"
        elif suffix not in SUFFIXES[info.format] or info.format == "MPO":
            suffix = SUFFIXES[info.format][0]
        path = "/".join(["images", *map(_loadable, [*folders, stem])])
        target, count = path + suffix, 1
        while unicodedata.normalize("NFC", target).casefold() in taken:
            count += 1
            target = f"{path}-{count}{suffix}"
        taken.add(unicodedata.normalize("NFC", target).casefold())
        prepared[name] = target
    return prepared


def _loadable(part: str) -> str:
    """A file's stem or a folder's name, spelt so that `datasets` neither skips it nor takes it for a split."""
    return re.sub(rf"(?<![^-._ 0-9])({SPLIT_WORDS})(?![^-._ 0-9])", r"\1x", part.lstrip("_") or "images")
