"""Zip and tar archives: their files are laid into a folder, without links, names that lead out of it, or bombs.

Nothing is believed that an archive says of itself: bytes are counted as they come. What cannot be taken is named; an
archive that is encrypted or cut off is refused as a whole, as nobody knows what it lacks.
"""

import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from finetune.data.folder import Rejected
from finetune.data.images.costs import MAX_FILE_BYTES
from finetune.data.sources.compressed import BROKEN, Opened, opened
from finetune.data.sources.kinds import ARCHIVES
from finetune.errors import DataError, RunError
from finetune.events import Advanced, Event, Stage

FREE_BYTES, PER_BYTE = 1 << 30, 100
"""An archive may hold so much, and for each of its own bytes so many: pictures hardly shrink."""
_CHUNK = 1 << 20
_SAID_EVERY = 100
_COPY_AGAIN = "copy or download it again"


class Unpacked(NamedTuple):
    files: int
    """That were written."""
    rejected: tuple[Rejected, ...]
    """Entries that are no ordinary files inside of it."""


class _Target:
    """The folder that files are laid into, and what is known of them."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.left = FREE_BYTES + PER_BYTE * archive.stat().st_size
        self.files, self.rejected = 0, list[Rejected]()
        self._taken, self._folders = set[str](), set[str]()
        self.last = ""

    def reject(self, name: str, reason: str, detail: str) -> None:
        self.rejected.append(Rejected(_printable(name), reason, detail))  # type: ignore[arg-type]

    def place(self, written: str) -> Path | None:
        """Where a file of that name goes; None: nowhere, which is noted."""
        name = posixpath.normpath(written.replace("\\", "/"))
        self.count(tarfile.BLOCKSIZE, written)  # a file takes room on a disk, and is in a folder, whatever it holds
        if not _stays_inside(written.replace("\\", "/")):
            self.reject(written, "link", "its name leads out of the archive")
        elif not _is_possible(name):
            self.reject(written, "unreadable", "no file can have this name; rename it in the archive")
        elif name.lower().endswith(ARCHIVES):
            detail = (
                f"archives in archives are not unpacked; unpack {self.archive.name}, and give this as a source, too"
            )
            self.reject(written, "unsupported type", detail)
        elif name.casefold() in self._taken:
            self.reject(written, "exact duplicate", "the archive has another file of this name, which is used")
        elif self._taken & (above := set(_above(name.casefold()))) or name.casefold() in self._folders:
            self.reject(written, "unreadable", "the archive has a folder and a file of one name")
        else:
            self._taken.add(name.casefold())
            self._folders |= above
            return self.folder / name
        return None

    def count(self, size: int, name: str) -> None:
        """Raises DataError: together with these bytes of that file it unpacks to too much."""
        self.left -= size
        if self.left < 0:
            raise DataError(
                f"{self.archive} unpacks to more than {PER_BYTE} times its size (at {_printable(name)})",
                "if you trust it, unpack it yourself and give the folder",
            )

    def write(self, path: Path, content: IO[bytes], name: str) -> None:
        """Up to the largest size of a picture. Raises OSError, and what reading raises."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with path.open("wb") as file:
            while chunk := content.read(_CHUNK):
                self.count(len(chunk), name)
                size += len(chunk)
                if size <= MAX_FILE_BYTES:
                    file.write(chunk)
        if size > MAX_FILE_BYTES:
            path.unlink()
            self.reject(name, "image bomb", f"it unpacks to more than {MAX_FILE_BYTES >> 20} MiB")
            return
        self.files, self.last = self.files + 1, name


def unpacking(archive: Path, folder: Path) -> Generator[Event, None, Unpacked]:
    """Lays the archive's files into a new folder.

    Raises:
        DataError: it is none, encrypted, cut off, or unpacks to far more than its size.
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True)
        target = _Target(archive, folder)
        files = _zip_files(target) if archive.name.lower().endswith(".zip") else _tar_files(target)
        yield Stage(f"unpacking {archive.name}", 0)
        for number, _ in enumerate(files, 1):
            if number % _SAID_EVERY == 0:
                yield Advanced(number)
    except OSError as e:
        raise RunError(f"cannot unpack {archive} into {folder.parent}: {e.strerror or e}", "free some space") from e
    return Unpacked(target.files, tuple(target.rejected))


# --- zip ------------------------------------------------------------------------------------------------------------


def _zip_files(target: _Target) -> Iterator[None]:
    try:
        whole = zipfile.ZipFile(target.archive)
    except zipfile.BadZipFile as e:
        raise DataError(
            f"{target.archive} is not a zip archive, or it is cut off: the list of files at its end is missing ({e})",
            _COPY_AGAIN,
        ) from e  # fmt: skip
    except (ValueError, NotImplementedError, struct.error, UnicodeDecodeError, EOFError) as e:
        raise DataError(f"{target.archive} is a damaged zip archive: {e}", _COPY_AGAIN) from e
    with whole:
        entries = whole.infolist()
        if locked := next((e for e in entries if e.flag_bits & 0x1), None):
            raise DataError(
                f"{target.archive} is encrypted ({_printable(locked.filename)})",
                "unpack it with its password, and give the folder",
            )
        for entry in entries:
            _unzip(whole, entry, target)
            yield


def _unzip(whole: zipfile.ZipFile, entry: zipfile.ZipInfo, target: _Target) -> None:
    mode = entry.external_attr >> 16
    if entry.is_dir():
        return
    if stat.S_ISLNK(mode):
        target.reject(entry.filename, "link", "links in an archive are not followed")
    elif mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        target.reject(entry.filename, "unreadable", "it is not a regular file")
    elif path := target.place(entry.filename):
        try:
            with whole.open(entry) as content:
                target.write(path, content, entry.filename)
        except NotImplementedError as e:
            target.reject(entry.filename, "unreadable", f"its compression is not supported ({e})")
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, *BROKEN) as e:
            path.unlink(missing_ok=True)
            target.reject(entry.filename, "corrupt", f"its entry in the archive is damaged ({e})")


# --- tar ------------------------------------------------------------------------------------------------------------


def _tar_files(target: _Target) -> Iterator[None]:
    with opened(target.archive) as stream, _faults(target, stream):
        stream.allow_header()
        with tarfile.TarFile(fileobj=cast(IO[bytes], stream)) as whole:
            while entry := _next(whole, stream):
                _untar(whole, entry, target)
                yield
            _check_end(target, stream)
            _pass_over(stream, target)  # check sums come last


def _next(whole: tarfile.TarFile, stream: Opened) -> tarfile.TarInfo | None:
    stream.allow_header()
    try:
        return whole.next()
    finally:
        cast(Any, whole).members.clear()  # it keeps each, however many there are
        stream.allow_content()


def _untar(whole: tarfile.TarFile, entry: tarfile.TarInfo, target: _Target) -> None:
    content = whole.extractfile(entry) if entry.isreg() else None
    if entry.isdir():
        return
    if entry.issym() or entry.islnk():
        target.reject(entry.name, "link", "links in an archive are not followed")
    elif content is None:
        target.reject(entry.name, "unreadable", "it is not a regular file")
    elif path := target.place(entry.name):
        target.write(path, content, entry.name)
        return
    if content is not None:
        _pass_over(content, target)


def _pass_over(content: IO[bytes] | Opened, target: _Target) -> None:
    """The next header is after it."""
    while chunk := content.read(_CHUNK):
        target.count(len(chunk), target.last)


def _check_end(target: _Target, stream: Opened) -> None:
    """`tarfile` takes a header that is cut off or damaged for the end; a whole archive ends with an empty block."""
    if stream.tail and not any(stream.tail) and len(stream.tail) == tarfile.BLOCKSIZE:
        return
    raise DataError(_cut_off(target), _COPY_AGAIN)


def _cut_off(target: _Target) -> str:
    after = f"after {_printable(target.last)}, file {target.files}" if target.last else "before its first file"
    return f"{target.archive} is cut off or damaged {after}"


@contextmanager
def _faults(target: _Target, stream: Opened) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, *BROKEN) as e:
        if not target.last and not stream.any_read:
            raise DataError(f"{target.archive} is empty or not a tar archive ({e})", _COPY_AGAIN) from e
        raise DataError(f"{_cut_off(target)} ({e})", _COPY_AGAIN) from e


# --- names ----------------------------------------------------------------------------------------------------------


def _stays_inside(name: str) -> bool:
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return False
    return not posixpath.normpath(name).startswith("..") and ".." not in name.split("/")


def _above(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


def _is_possible(name: str) -> bool:
    parts = name.split("/")
    return name not in ("", ".") and "\0" not in name and all(len(_bytes(part)) <= 255 for part in parts) and (
        len(_bytes(name)) <= 2000
    )  # fmt: skip


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _printable(name: str) -> str:
    return _bytes(name).decode("utf-8", "backslashreplace")
