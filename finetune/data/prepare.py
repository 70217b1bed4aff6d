"""Writes a prepared dataset: an imagefolder with final captions and dataset.toml."""

import json
import posixpath
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finetune import reading, writing
from finetune.choices import CaptionsFrom
from finetune.data import captions, decode, folder
from finetune.data.audit import Audit, audit_folder, complaint
from finetune.data.caption_files import TABLE
from finetune.data.colours import WHITE, Colour, colour_name
from finetune.data.dataset import read_dataset
from finetune.data.decode import ImageInfo
from finetune.data.diagnose import SUFFIXES
from finetune.data.example import CARD, Dataset, DatasetCard
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rules
from finetune.data.wording import DatasetKind
from finetune.errors import DataError, RunError
from finetune.saving import flush_files, is_leftover, remove_leftovers, write_bytes

SPLIT_WORDS = "training|train|validation|valid|val|dev|testing|test|evaluation|eval"
"""Names by which `datasets` splits a folder: of a.jpg and train-1.jpg it would load one and drop the other."""


def prepare(
    source: Path,
    out: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    kind: DatasetKind = "",
    template: str | None = None,
    license: str = "",
    source_note: str = "",
    background: Colour = WHITE,
    captions_from: CaptionsFrom = "auto",
    allow_uncaptioned: bool = False,
    captioned_next: bool = False,
    min_side_px: int = MIN_SIDE_PX,
    max_aspect: float = MAX_ASPECT,
) -> Dataset:
    """Writes an imagefolder with final captions and dataset.toml to `out`, in full or not at all.

    Images that need no change are copied byte for byte, others written as PNG. The source is only read.
    The card of the result lists the rejected files. captioned_next: a model captions the result next, so that lacking
    captions are no problem yet; whoever reads it later finds them, should they still be lacking.

    Raises:
        DataError: the source has problems, or `out` is not empty or lies inside the source.
        RunError: `out` cannot be written.
    """
    _refuse_out(folder.locate_images(source), out)
    writing.try_folder(out)
    words = captions.clean_words(
        trigger, class_word, template, kind, captions_from, allow_uncaptioned or captioned_next
    )
    report = audit_folder(source, words, Rules(min_side_px, max_aspect, background))
    if report.problems:
        raise DataError(*complaint(source, report))
    card = report.card.model_copy(
        update={
            "kind": kind or report.card.kind,
            "template": words.template or report.card.template,
            "allow_uncaptioned": allow_uncaptioned or report.card.allow_uncaptioned,
            "license": license or report.card.license,
            "source": source_note or report.card.source,
            "background": colour_name(background),
        }
    )
    _write(report, card, out, background)
    return read_dataset(out, allow_uncaptioned=captioned_next)


def _refuse_out(source: Path, out: Path) -> None:
    if reading.exists(out) and (not reading.is_dir(out) or any(not is_leftover(path.name) for path in out.iterdir())):
        raise DataError(f"{out} is not empty", "choose another `out`, or remove it first")
    if reading.real_path(out).is_relative_to(reading.real_path(source)):
        raise DataError(f"{out} lies inside {source}, which must stay as it is", "choose an `out` outside of it")


def _write(report: Audit, card: DatasetCard, out: Path, background: Colour) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as aside:
            folder_aside = Path(aside) / out.name
            _fill_folder(report, card, folder_aside, background)
            flush_files(folder_aside)
            if reading.is_dir(out):
                remove_leftovers(out)
                out.rmdir()
            folder_aside.rename(out)
    except OSError as e:
        raise RunError(f"cannot write {out}: {e.strerror or e}", "free some space, or choose another `out`") from e


def _fill_folder(report: Audit, card: DatasetCard, root: Path, background: Colour) -> None:
    names = _prepared_names([(e.name, report.infos[e.name]) for e in report.used])
    rows = []
    for example in report.used:
        target = root / names[example.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        content = decode.contents(example.path, example.digest)
        if decode.needs_no_change(report.infos[example.name]):
            target.write_bytes(content)
        else:
            decode.decoded(example.path, content, background).save(target, "PNG", compress_level=3)
        rows.append({"file_name": names[example.name], "text": example.caption, "caption_by": example.origin})
    if all(row["caption_by"] == "written" for row in rows):
        rows = [{k: v for k, v in row.items() if k != "caption_by"} for row in rows]
    (root / TABLE).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    card = card.model_copy(
        update={
            "captions": report.caption_source,
            "images": len(report.used),
            "seen": report.seen,
            "changes": dict(Counter(note.text for note in report.notes if note.file)),
            "rejected": report.rejected,
        }
    )
    write_card(card, root)


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
