"""Caption files: sidecars beside the images, or a metadata table that lists them."""

import csv
import io
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from finetune import reading
from finetune.data.attributes import Attributes, read_attributes
from finetune.data.folder import Rejected
from finetune.data.wording import CaptionOrigin
from finetune.errors import DataError

CaptionSource = Literal[
    "sidecars", "metadata.jsonl", "metadata.csv", "file names", "template", "none", "several sources"
]

TABLE = "metadata.jsonl"
TABLES = (TABLE, "metadata.csv")
SIDECARS = (".txt", ".caption")
_ORIGINS = get_args(CaptionOrigin)
CAPTION_BYTES = 1 << 20
"""the most that a picture's own caption file may have; a text encoder reads some hundred words"""


class FoundCaptions(NamedTuple):
    """The captions that a folder holds, as their author wrote them."""

    source: CaptionSource
    texts: dict[str, str]
    """Image -> its written caption, which may be empty."""
    files: set[str]
    """The files that carry captions: sidecars that belong to an image, and tables."""
    orphans: list[Rejected]
    problems: list[str]
    origins: dict[str, CaptionOrigin]
    """Image -> who wrote its caption, where a table says so in its column `caption_by`."""
    attributes: dict[str, Attributes]
    """Image -> what else is known of it, where something is."""


def find_captions(root: Path, names: Sequence[str]) -> FoundCaptions:
    """Reads the sidecars or metadata tables among the names; the others are taken for images."""
    tables = [n for n in names if posixpath.basename(n) in TABLES]
    sidecars = [n for n in names if n.lower().endswith(SIDECARS)]
    carriers = {*tables, *sidecars}
    pictures = [n for n in names if n not in carriers]
    beside = _read_sidecars(root, sidecars, pictures)
    listed = _read_tables(root, tables, pictures)
    problems = [*beside.problems, *listed.problems]
    if tables and beside.files:
        problems.append(f"two sources of captions: {tables[0]} and {first_three(sorted(beside.files))}; keep one")
    chosen = listed if tables else beside
    return chosen._replace(files=beside.files | listed.files, orphans=beside.orphans, problems=problems)


def _read_sidecars(root: Path, sidecars: Sequence[str], pictures: Sequence[str]) -> FoundCaptions:
    owners: dict[str, list[str]] = {}
    for picture in pictures if sidecars else ():
        owners.setdefault(posixpath.splitext(picture)[0], []).append(picture)
    captions = FoundCaptions("sidecars" if sidecars else "none", {}, set(), [], [], {}, {})
    sidecar_of: dict[str, str] = {}
    for sidecar in sidecars:
        stem = posixpath.splitext(sidecar)[0]
        if stem not in owners:
            detail = f"there is no image {posixpath.basename(stem)} beside it"
            captions.orphans.append(Rejected(sidecar, "caption without image", detail))
            continue
        captions.files.add(sidecar)
        if stem in sidecar_of:
            captions.problems.append(f"two captions for {owners[stem][0]}: {sidecar_of[stem]} and {sidecar}; keep one")
            continue
        sidecar_of[stem] = sidecar
        text = _text(root, sidecar, captions.problems, CAPTION_BYTES)
        captions.texts.update(dict.fromkeys(owners[stem], text))
    return captions._replace(source="sidecars" if captions.files else "none")


def _read_tables(root: Path, tables: Sequence[str], pictures: Sequence[str]) -> FoundCaptions:
    source: CaptionSource = "metadata.csv" if tables and tables[0].endswith(".csv") else "metadata.jsonl"
    captions = FoundCaptions(source if tables else "none", {}, set(tables), [], [], {}, {})
    by_name = {_composed(p): p for p in pictures}  # a Mac writes names decomposed
    homes = [posixpath.dirname(t) for t in tables]
    if len(set(homes)) < len(homes):
        captions.problems.append(f"two sources of captions: {tables[0]} and {tables[1]}; keep one")
    for table in tables:
        nowhere, home = [], table.removesuffix(posixpath.basename(table))
        for where, file_name, caption, origin, attributes in _rows(root, table, captions.problems):
            picture = by_name.get(_composed(home + file_name)) or by_name.get(_composed(_path(home, file_name)))
            if picture is None:
                nowhere.append(f"{file_name!r} ({where})")
            elif captions.texts.setdefault(picture, caption) != caption:
                captions.problems.append(f"{table} {where}: {file_name} has a second, different caption")
            else:
                if origin is not None:
                    captions.origins[picture] = origin
                captions.attributes[picture] = attributes
        if nowhere:
            captions.problems.append(f"{table} names {len(nowhere)} files that are not there: {first_three(nowhere)}")
    return captions


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _path(home: str, file_name: str) -> str:
    """Relative to the dataset's folder. home: the table's own, as `a/b/`."""
    return posixpath.normpath(posixpath.join(home, file_name.replace("\\", "/")))


class _Row(NamedTuple):
    where: str
    file_name: str
    caption: str
    origin: CaptionOrigin | None
    attributes: Attributes


def _rows(root: Path, table: str, problems: list[str]) -> Iterator[_Row]:
    """The sound rows of a metadata table; a wrong row is added to the problems."""
    text = _text(root, table, problems)
    for where, cells in (
        _csv_rows(table, text, problems) if table.endswith(".csv") else _json_rows(table, text, problems)
    ):
        file_name, captions = cells.get("file_name"), [c for k in ("text", "caption") if (c := cells.get(k))]
        if not isinstance(file_name, str) or not file_name:
            problems.append(f"{table} {where}: the row has no file_name")
        elif not all(isinstance(c, str) for c in captions) or captions != captions[:1] * len(captions):
            problems.append(f"{table} {where}: the row must have one caption, a string in `text` or `caption`")
        else:
            by = cells.get("caption_by")
            origin = cast(CaptionOrigin, by) if by in _ORIGINS else None
            try:
                attributes = read_attributes(cells)
            except ValueError as e:
                problems.append(f"{table} {where}: {e}")
                continue
            yield _Row(where, file_name, str(captions[0]) if captions else "", origin, attributes)


def _json_rows(table: str, text: str, problems: list[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", reading.json_table(line, f"{table} line {number}", DataError, "", finite=False)
        except DataError as e:
            problems.append(e.problem)


def _csv_rows(table: str, text: str, problems: list[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "file_name" not in (reader.fieldnames or ()):
            problems.append(f"{table}: the first line must name the columns file_name and text")
            return
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as e:
        problems.append(f"{table} line {reader.line_num}: the line is not CSV ({e})")


def _text(root: Path, name: str, problems: list[str], most: int = reading.TEXT_BYTES) -> str:
    """The file as UTF-8, without a byte-order mark, lines ending in a line feed."""
    try:
        return reading.read_text(root / name, DataError, limit=most).replace("\r\n", "\n").replace("\r", "\n")
    except DataError as e:
        problems.append("; ".join(filter(None, (e.problem.replace(str(root / name), name), e.hint))))
    return ""


def first_three(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
