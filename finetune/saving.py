"""What is written is whole or not there: beside first, flushed, then renamed; a kill or a power cut leaves no half."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from finetune import reading

MANY_FILES = 64
_FLUSHED_AT_ONCE = 16


def write_bytes(content: bytes | bytearray | Iterable[bytes], path: Path, flush: bool = True) -> None:
    """Write beside, flush, rename: `path` is never half a file. The name beside is this call's own, so two writers
    cannot mix. Without the flush a power cut may leave half: for files that are checked when they are read.

    content: in one piece, or in several.

    Raises:
        OSError: the disk is full, or gone; what was there before stays.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with beside.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes | bytearray) else content)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)  # a full disk needs its room
        raise


def append(content: bytes, path: Path, unit: int = 1) -> int:
    """Add to the end of a file that no other process writes, not flushed; it is made where there is none. A kill may
    leave a part: of a file of units of so many bytes, a part of one is written over by the next. Returns where the
    content begins.

    Raises:
        OSError: the disk is full, or gone; the file is as long as before, as far as the disk lets it.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        start, left = file.seek(end - end % unit), memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                os.truncate(path, start)
            raise
    return start


def overwrite(content: bytes, path: Path, start: int) -> None:
    """Some bytes inside a file, in place. Raises OSError."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def flush_file(path: Path) -> None:
    """Have the disk keep what a file holds. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def whole_or_not(folder: Path) -> Iterator[Path]:
    """A folder beside, which takes the place of `folder` when all went well. For an instant there is none, and never
    half of one.

    Raises:
        OSError: the disk is full, or gone; what was there before stays.
    """
    beside, before = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("part", "before"))
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        flush_files(beside)
        _replace(folder, beside, before)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of that name is what a killed writer left beside what it wrote."""
    return name.startswith(".") and name.endswith((".part", ".before"))


def remove_leftovers(folder: Path) -> None:
    """Of a folder and all beneath it, in which nobody else may write meanwhile. What cannot be removed stays."""
    for place, folders, files in os.walk(folder):
        for name in filter(is_leftover, folders):
            shutil.rmtree(os.path.join(place, name), ignore_errors=True)
        for name in filter(is_leftover, files):
            with suppress(OSError):
                os.unlink(os.path.join(place, name))


def flush_files(folder: Path) -> None:
    """Have the disk keep all that is in a folder, before it is renamed. Raises OSError."""
    for place, _, names in os.walk(folder):
        if len(names) < MANY_FILES:
            _flush_each(place, names)
        else:  # a disk that is asked for many at once keeps them in a fraction of the time
            with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
                shares = (names[start::_FLUSHED_AT_ONCE] for start in range(_FLUSHED_AT_ONCE))
                list(pool.map(partial(_flush_each, place), shares))
        flush_names(Path(place))


def _flush_each(place: str, names: Iterable[str]) -> None:
    for name in names:
        with open(os.path.join(place, name), "rb") as file:
            os.fsync(file.fileno())


def flush_names(folder: Path) -> None:
    """Make renames in a folder last, where the system lets a folder be flushed. Raises OSError."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(folder: Path, beside: Path, before: Path) -> None:
    """A folder that is not empty cannot be renamed over: it goes aside first, and comes back when that fails."""
    shutil.rmtree(before, ignore_errors=True)
    there = reading.exists(folder)
    if there:
        folder.rename(before)
    try:
        beside.rename(folder)
    except OSError:
        if there:
            with suppress(OSError):
                before.rename(folder)
        raise
