"""Archives and tables as folders, kept in a hidden folder beside the dataset until it is made.

A table's rows go into a journal as they are read, with the place in the table every few rows. A call that was
interrupted goes on from there, if it reads the same source, unchanged, in the same way.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

from finetune import reading
from finetune.data.attributes import Attributes, read_attributes
from finetune.data.folder import Rejected
from finetune.data.record import file_stamp
from finetune.data.sources.archives import unpacking
from finetune.data.sources.conditions import all_hold
from finetune.data.sources.names import Source
from finetune.data.sources.rows import Refused, keep_row
from finetune.data.sources.tables import OpenedTable, Selection, open_table
from finetune.data.text.caption_files import TABLE
from finetune.errors import DataError, RunError
from finetune.events import Advanced, Event, Note, Stage
from finetune.saving import write_bytes

VERSION = 2
"""to be raised with every change of what is kept"""
_MARK_ROWS, _MARK_S = 25, 2.0
"""The place in the table is noted after so many rows, or seconds."""
_SAID_EVERY = 100
_FILES, _JOURNAL, _DONE = "files", "rows.jsonl", "done.json"


class Staged(NamedTuple):
    """A source as a folder."""

    root: Path
    rejected: tuple[Rejected, ...] = ()
    """What did not get into the folder."""
    attributes: Mapping[str, Attributes] = {}
    """Of pictures without a metadata table."""


def staging_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.sources")


def remove_staged(out: Path) -> None:
    shutil.rmtree(staging_folder(out), ignore_errors=True)


def staging(source: Source, selection: Selection, out: Path) -> Generator[Event, None, Staged]:
    """The folder of a source; a folder is its own.

    Raises:
        DataError: it cannot be read. RunError: there is no room, or another process reads it to the same place.
    """
    if source.kind == "folder":
        return Staged(source.path)
    home = staging_folder(out) / _key(source, selection)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home, out), _kept_if_begun(home):
            if source.kind == "archive":
                return (yield from _archive(source, home))
            return (yield from _table(source, selection, home))
    except OSError as e:
        raise RunError(f"cannot read {source.written} into {home}: {e.strerror or e}", "free some space") from e


def _key(source: Source, selection: Selection) -> str:
    if source.hub:
        of: object = [source.hub, source.revision]
    else:
        of = [str(reading.real_path(source.path)), _stamps(source.path)]
    told = [VERSION, source.kind, of, [*map(str, selection)] if source.kind != "archive" else []]
    return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stamps(path: Path) -> list[str]:
    if not reading.is_dir(path):
        return [file_stamp(path.stat())]
    files = sorted(os.path.join(place, name) for place, _, names in os.walk(path) for name in names)
    return [f"{os.path.relpath(file, path)} {file_stamp(os.lstat(file))}" for file in files]


@contextmanager
def _alone(home: Path, out: Path) -> Iterator[None]:
    with (home / "lock").open("w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise RunError(f"another process is preparing {out} from the same source", "wait for it") from e
        yield


@contextmanager
def _kept_if_begun(home: Path) -> Iterator[None]:
    """What cannot be gone on with is removed."""
    try:
        yield
    finally:
        if _done(home) is None and not _place(home).rows:
            shutil.rmtree(home, ignore_errors=True)
            with suppress(OSError):
                home.parent.rmdir()


def _done(home: Path) -> dict[str, object] | None:
    with suppress(DataError):
        return reading.read_json(home / _DONE, DataError, "", limit=reading.TEXT_BYTES)
    return None


def _finish(home: Path, rejected: list[Rejected], **told: object) -> None:
    content = {"rejected": [list(one) for one in rejected], **told}
    write_bytes(json.dumps(content, ensure_ascii=False).encode(), home / _DONE)


def _rejected(done: Mapping[str, object]) -> tuple[Rejected, ...]:
    listed = done["rejected"]
    assert isinstance(listed, list)
    return tuple(Rejected(*one) for one in listed)


def _archive(source: Source, home: Path) -> Generator[Event, None, Staged]:
    done = _done(home)
    if done is None:
        shutil.rmtree(home / _FILES, ignore_errors=True)
        found = yield from unpacking(source.path, home / _FILES)
        _finish(home, list(found.rejected))
        return Staged(_innermost(home / _FILES), found.rejected)
    yield Note(f"{source.written} was already unpacked by an earlier command, and is reused")
    return Staged(_innermost(home / _FILES), _rejected(done))


def _innermost(root: Path) -> Path:
    """Of an archive that holds a prepared dataset in one folder: that folder."""
    inside = list(root.iterdir())
    return inside[0] if len(inside) == 1 and reading.is_file(inside[0] / "dataset.toml") else root


# --- tables ---------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """How far a table was read."""

    rows: int = 0
    kept: int = 0
    left_out: int = 0
    """by conditions"""
    position: object = None
    version: str = ""
    at: int = 0
    """bytes of the journal until then"""


def _table(source: Source, selection: Selection, home: Path) -> Generator[Event, None, Staged]:
    if (done := _done(home)) is not None:
        yield Note(f"{source.written} was already read by an earlier command, and is reused")
        return Staged(home / _FILES, _rejected(done), _attributes(home, done))
    yield Stage(f"opening {source.written}", 0)
    table = open_table(source, selection, home / "cache")
    yield Note(_understood(table))
    place = _place(home)
    if place.rows and place.version != table.version:
        yield Note(f"{source.written} has changed since it was read in part: it is read again from the beginning")
        place = _Place()
    elif place.rows:
        yield Note(
            f"{source.written}: {place.rows:,} rows were already read by an earlier command; reading continues there"
        )
    if not place.rows:
        shutil.rmtree(home / _FILES, ignore_errors=True)
    end = yield from _read_rows(table, source, selection, home, place)
    rejected = _write_tables(home, bool(table.columns.caption))
    if end.left_out:
        conditions = " and ".join(one.written for one in selection.where)
        yield Note(
            f"{source.written}: {end.left_out:,} of {end.rows:,} rows are left out, as they do not meet {conditions}"
        )
    _finish(home, rejected, captions=bool(table.columns.caption))
    done = {"captions": bool(table.columns.caption)}
    return Staged(home / _FILES, tuple(rejected), _attributes(home, done))


def _understood(table: OpenedTable) -> str:
    split = f"split {table.split}" + (f" of {', '.join(table.splits)}" if len(table.splits) > 1 else "")
    captions = f"captions from {table.columns.caption}" if table.columns.caption else "no column holds captions"
    kept = f"; kept: {', '.join(table.columns.kept)}" if table.columns.kept else ""
    unread = f"; not read: {', '.join(table.columns.unread)}" if table.columns.unread else ""
    return f"{table.where}: {split}, images from {table.columns.image}, {captions}{kept}{unread}"


def _place(home: Path) -> _Place:
    """The last one noted whose pictures are all there."""
    found = _Place()
    try:
        with (home / _JOURNAL).open("rb") as journal:
            at = 0
            for line in journal:
                at += len(line)
                if not line.endswith(b"\n"):
                    break
                told = json.loads(line)
                if "position" in told:
                    found = _Place(**told, at=at)
                elif "file_name" in told and _bytes_of(home / _FILES / told["file_name"]) != told["bytes"]:
                    break
    except (OSError, ValueError, TypeError, KeyError):
        return found
    return found


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _read_rows(
    table: OpenedTable, source: Source, selection: Selection, home: Path, place: _Place
) -> Generator[Event, None, _Place]:
    limit = selection.limit
    yield Stage(f"reading {source.written}", limit or 0)
    with (home / _JOURNAL).open("ab") as journal:
        journal.truncate(place.at)
        marked = time.monotonic()
        if limit is not None and place.kept >= limit:
            return place
        for row in table.rows(place.rows, place.position):
            told = _taken(place.rows, row, table, source, selection, home)
            place = place._replace(
                rows=place.rows + 1,
                kept=place.kept + ("file_name" in told),
                left_out=place.left_out + (not told),
            )
            if told:
                _note(journal, told)
            if place.rows % _MARK_ROWS == 0 or time.monotonic() - marked > _MARK_S:
                _mark(journal, place, table)
                marked = time.monotonic()
            if place.kept % _SAID_EVERY == 0 and told:
                yield Advanced(place.kept)
            if limit is not None and place.kept >= limit:
                break
    return place


def _taken(
    number: int, row: Mapping[str, object], table: OpenedTable, source: Source, selection: Selection, home: Path
) -> dict[str, object]:
    """A line of the journal; empty: conditions leave the row out."""
    if not all_hold(selection.where, row, f"{source.written} row {number}"):
        return {}
    try:
        kept = keep_row(number, row, table.columns, source, home / _FILES)
    except Refused as e:
        return {"row": number, "reason": e.reason, "detail": e.detail}
    text = {} if kept.text is None else {"text": kept.text}
    return {"row": number, "file_name": kept.name, "bytes": kept.size, **text, **kept.cells}


def _note(journal: IO[bytes], told: Mapping[str, object]) -> None:
    journal.write(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _mark(journal: IO[bytes], place: _Place, table: OpenedTable) -> None:
    told = place._replace(position=table.position(), version=table.version)._asdict()
    del told["at"]
    _note(journal, told)
    journal.flush()


def _lines(home: Path) -> Iterator[dict[str, object]]:
    with (home / _JOURNAL).open("rb") as journal:
        for line in journal:
            if "row" in (told := json.loads(line)):
                yield told


def _write_tables(home: Path, captions: bool) -> list[Rejected]:
    """A metadata table in each folder, where there are captions; what was refused."""
    rejected, tables = list[Rejected](), dict[str, IO[str]]()
    (home / _FILES).mkdir(exist_ok=True)
    try:
        for told in _lines(home):
            number, name = told.pop("row"), told.get("file_name")
            if not isinstance(name, str):
                rejected.append(Rejected(f"row {number}", told["reason"], str(told["detail"])))  # type: ignore[arg-type]
                continue
            if not captions:
                continue
            folder, _, own = name.rpartition("/")
            if folder not in tables:
                tables[folder] = (home / _FILES / folder / TABLE).open("w", encoding="utf-8")
            del told["bytes"]
            tables[folder].write(json.dumps(told | {"file_name": own}, ensure_ascii=False) + "\n")
    finally:
        for file in tables.values():
            file.close()
    return rejected


def _attributes(home: Path, done: Mapping[str, object]) -> dict[str, Attributes]:
    """Of pictures whose table has no captions: a metadata table would say that they have empty ones."""
    if done["captions"]:
        return {}
    found = {str(told["file_name"]): read_attributes(told) for told in _lines(home) if "file_name" in told}
    return {name: one for name, one in found.items() if one != Attributes()}
