"""A row of a table as a picture in a folder, its bytes as they are, with what the row says of it."""

import json
import os
import posixpath
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.data.attributes import TEXTS, cells_of, read_attributes
from finetune.data.images.costs import MAX_FILE_BYTES
from finetune.data.images.diagnose import Reason
from finetune.data.images.signatures import IMAGE_SUFFIXES, SUFFIXES, format_of
from finetune.data.sources.columns import Columns, column_cell, picture_in_text
from finetune.data.sources.names import Source
from finetune.data.sources.tables import SourceRow, read_address
from finetune.errors import DataError

SHARD = 10_000
"""pictures in a folder, each with a table of its own"""
_LOCAL, _ADDRESS = "the picture's path", "addresses are not downloaded: download it, and write the path of the file"


class Refused(Exception):
    """The row holds no picture that can be taken."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Kept(NamedTuple):
    """A picture in the folder."""

    name: str
    size: int
    text: str | None
    cells: Mapping[str, object]


def keep_row(number: int, row: SourceRow, columns: Columns, source: Source, root: Path) -> Kept:
    """Writes its picture into the folder.

    Raises:
        Refused: it has none.
        DataError: a column holds what cannot be. OSError: the disk is full.
    """
    found = column_cell(row, columns.image)
    told, content = _content(found, source)
    stem, suffix = posixpath.splitext(posixpath.basename(told.replace("\\", "/").split("::")[0].split("?")[0]))
    name = _name(number, stem, _suffix(content, suffix))
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        _place(content, path)
    else:
        path.write_bytes(content)
    text, cells = _said(row, columns, f"{source.written} row {number}")
    if mask := cells.get("mask_file_name"):
        cells = {**cells, "mask_file_name": _keep_mask(str(mask), name, source, root)}
    return Kept(name, path.stat().st_size, text, cells)


def _content(found: object, source: Source) -> tuple[str, bytes | Path]:
    """(what its path says, its bytes or its file)."""
    if isinstance(found, Mapping):
        path, data = str(found.get("path") or ""), found.get("bytes")
        return path, _bounded(data) if isinstance(data, bytes) and data else _by_path(path, source)
    if isinstance(found, bytes):
        return "", _bounded(found)
    if isinstance(found, str) and found:
        if (data := picture_in_text(found)) is not None:
            return "", _bounded(data)
        return found, _by_path(found, source)
    raise (
        Refused("zero bytes", "the row has no image")
        if found in (None, "", b"")
        else Refused("not an image", f"its column holds {type(found).__name__}, not an image")
    )


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise Refused("image bomb", f"the image is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _by_path(path: str, source: Source) -> bytes | Path:
    if not path:
        raise Refused("zero bytes", "the row has no image")
    if source.hub and f"hf://datasets/{source.hub}@" in path:
        return _bounded(read_address(source, path, MAX_FILE_BYTES + 1))
    if source.hub or "://" in path:
        raise Refused("unreadable", f"it is at {path[:80]}; {_ADDRESS}")
    return _beside(path, source)


def _beside(path: str, source: Source) -> Path:
    """A file in the table's folder."""
    home = source.path if reading.is_dir(source.path) else source.path.parent
    file = (
        reading.real_path(home / path.replace("\\", "/")) if not os.path.isabs(path) else reading.real_path(Path(path))
    )
    if not file.is_relative_to(reading.real_path(home)):
        raise Refused("link", f"{path[:80]} lies outside of the table's folder; copy it there")
    if not reading.is_file(file):
        raise Refused("unreadable", f"there is no file {path[:80]} beside the table")
    return file


def _place(file: Path, path: Path) -> None:
    """A link costs no room; nothing writes into these files."""
    path.unlink(missing_ok=True)
    try:
        os.link(file, path)
    except OSError:
        shutil.copyfile(file, path)


def _name(number: int, stem: str, suffix: str) -> str:
    shard = f"rows-{number // SHARD * SHARD}/" if number >= SHARD else ""
    said = re.sub(r"[^\w .,()+&-]", "_", stem).strip(" .")[:60]
    return f"{shard}{number:06d}{'-' if said else ''}{said}{suffix}"


def _suffix(content: bytes | Path, written: str) -> str:
    if isinstance(content, Path):
        return content.suffix.lower()
    if known := format_of(content):
        return SUFFIXES[known][0]
    return written.lower() if written.lower() in IMAGE_SUFFIXES else ".bin"


def _said(row: SourceRow, columns: Columns, where: str) -> tuple[str | None, dict[str, object]]:
    """(the caption, the cells of a metadata table) of a row."""
    cells = {name: column_cell(row, name) for name in columns.kept}
    for name in TEXTS:
        if isinstance(value := cells.get(name), int | float) and not isinstance(value, bool):
            cells[name] = str(value)
    caption = column_cell(row, columns.caption) if columns.caption else None
    more = cells.pop("captions", None) or []
    if isinstance(caption, list):
        caption, more = (caption[0] if caption else ""), [*caption[1:], *(more if isinstance(more, list) else [more])]
    if not isinstance(caption, str | int | float | None):
        raise DataError(f"{where}: `{columns.caption}` holds no text", "name another column with `caption_column`")
    try:
        kept = cells_of(read_attributes(cells | {"captions": _listed(more)}))
    except ValueError as e:
        raise DataError(f"{where}: {e}", "correct it, or leave the column out with `ignore_column`") from e
    if by := cells.get("caption_by"):
        kept["caption_by"] = by
    return None if not columns.caption else str("" if caption is None else caption), kept


def _listed(captions: object) -> object:
    if isinstance(captions, str) and captions.startswith("["):
        try:
            return json.loads(captions)
        except ValueError:
            return captions
    return captions


def _keep_mask(mask: str, name: str, source: Source, root: Path) -> str:
    """The mask beside its picture; its name, relative to the picture's table."""
    if source.hub:
        raise Refused("unreadable", f"its mask {mask[:80]} is not in the table; {_ADDRESS}")
    try:
        file = _beside(mask, source)
    except Refused as e:
        raise Refused(e.reason, f"its mask: {e.detail}") from e
    folder, _, own = name.rpartition("/")
    kept = f"masks/{posixpath.splitext(own)[0]}{file.suffix.lower()}"
    path = root / folder / kept
    path.parent.mkdir(parents=True, exist_ok=True)
    _place(file, path)
    return kept
