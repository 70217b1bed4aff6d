"""Entries packed into a few files, which each writer has for itself: added to at the end, checked when they are read.

A shard is two files. NAME.shard holds entries one after the other, each after its checksum. NAME.open has a row for
each: its key, where it lies, and its length. When its writer is done both are flushed, and the index is renamed to
NAME.index: from then on what it names is taken for there until it is read. What an open one names, which is being
written now or was left by a kill or a power cut, is read before it is counted on.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune import reading, saving
from finetune.encoding.sizes import DIGEST_BYTES, ROW_BYTES
from finetune.errors import RunError

SHARD_BYTES, SHARD_ENTRIES = 256 * 2**20, 4096
"""after which a writer begins another; a kill leaves so many at most to be read at each start"""
KEY_LENGTH = 32
ROW = np.dtype([("key", "u1", KEY_LENGTH), ("start", "<i8"), ("length", "<i8")])
Rows = npt.NDArray[Any]
"""(n,) of ROW"""
_NAME = re.compile(r"([0-9a-f]{16})\.(shard|open|index)")
_NO_KEY = bytes(KEY_LENGTH)
assert ROW.itemsize == ROW_BYTES


class Part(NamedTuple):
    """Rows of one shard, of entries that lie inside it."""

    name: str
    sealed: bool
    rows: Rows


class Shards:
    """The shards in one folder, and the one that is written by this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer, self._name, self._bytes, self._entries = 0, "", 0, 0

    def append(self, key: bytes, content: bytes) -> tuple[str, int, int]:
        """Returns the shard's name, start and length. Raises RunError: it cannot be written."""
        if self._writer != os.getpid():  # of this process alone, also after a fork
            self._writer, self._name, self._bytes, self._entries = os.getpid(), secrets.token_hex(8), 0, 0
        whole, name = _digest(key, content) + content, self._name
        with self._written():
            self.folder.mkdir(parents=True, exist_ok=True)
            start = saving.append(whole, self._file("shard"))
            row = np.array([(np.frombuffer(key, "u1"), start, len(whole))], ROW)
            saving.append(row.tobytes(), self._file("open"), ROW_BYTES)
        self._bytes, self._entries = self._bytes + len(whole), self._entries + 1
        if self._bytes >= SHARD_BYTES or self._entries >= SHARD_ENTRIES:
            self.seal()
        return name, start, len(whole)

    def seal(self) -> None:
        """No more is added to what was written. Where that fails, it stays open: it is read before it is counted on."""
        if self._writer == os.getpid():
            with suppress(OSError):  # a full disk, or another process has cleared the cache
                for kind in ("shard", "open"):
                    saving.flush_file(self._file(kind))
                self._file("open").rename(self._file("index"))
        self._writer = 0

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise RunError(
                f"cannot write into the cache {self.folder.parent}: {e.strerror}",
                "free some space, or name another folder: data.cache, or the variable FINETUNE_CACHE",
            ) from e

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self._name}.{kind}"

    def scan(self, seen: dict[str, int]) -> Iterator[Part]:
        """Rows that were not seen; seen: index file -> rows, or -1 when no more can come; it is brought up to date."""
        for entry in sorted(inside(self.folder), key=lambda entry: entry.name):
            named = _NAME.fullmatch(entry.name)
            if named is None or named[2] == "shard" or not entry.is_file(follow_symlinks=False):
                continue
            name, sealed = named[1], named[2] == "index"
            if (before := seen.get(name, 0)) >= 0:
                rows = self._rows(entry.name, before)
                seen[name] = -1 if sealed else before + len(rows)
                yield Part(name, sealed, rows[self._whole(name, rows)])

    def _rows(self, index: str, after: int = 0) -> Rows:
        """Whole ones; none where the file cannot be read."""
        try:
            content = reading.read_part(self.folder / index, after * ROW_BYTES)
        except (OSError, ValueError):  # cleared by another process, or renamed
            content = b""
        return np.frombuffer(content[: len(content) // ROW_BYTES * ROW_BYTES], ROW)

    def _whole(self, name: str, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which are of entries that lie inside the shard."""
        try:
            size = os.stat(self.folder / f"{name}.shard").st_size
        except OSError:
            size = 0
        start, length = rows["start"], rows["length"]
        within = (start >= 0) & (length >= DIGEST_BYTES) & (length <= size) & (start <= size - length)
        return within & rows["key"].any(axis=1)

    def read(self, name: str, key: bytes, start: int, length: int) -> bytes | None:
        """None: it is not there, or damaged."""
        try:
            whole = reading.read_part(self.folder / f"{name}.shard", start, length)
        except (OSError, ValueError):  # another process clears the cache meanwhile
            return None
        content = whole[DIGEST_BYTES:]
        return content if len(whole) == length and _digest(key, content) == whole[:DIGEST_BYTES] else None

    def drop_damaged(self, name: str) -> None:
        """Forget what is gone or damaged in a shard. Raises RunError: the cache cannot be written."""
        for index in (f"{name}.index", f"{name}.open"):
            rows = self._rows(index)
            whole = self._whole(name, rows)
            for at, (key, start, length) in enumerate(rows_of(rows)):
                if key != _NO_KEY and not (whole[at] and self.read(name, key, start, length)):
                    with self._written():
                        saving.overwrite(_NO_KEY, self.folder / index, at * ROW_BYTES)

    def files(self) -> list[os.DirEntry[str]]:
        """The cache's own in here; no link."""
        return [entry for entry in inside(self.folder) if _is_own(entry)]

    def count(self) -> int:
        return sum(len(part.rows) for part in self.scan({}))


def rows_of(rows: Rows) -> Iterator[tuple[bytes, int, int]]:
    """(key, start, length) of each."""
    for row in rows:
        yield row["key"].tobytes(), int(row["start"]), int(row["length"])


def _digest(key: bytes, content: bytes) -> bytes:
    found = hashlib.sha256(key)
    found.update(content)
    return found.digest()


def _is_own(entry: os.DirEntry[str]) -> bool:
    return _NAME.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)


def inside(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
