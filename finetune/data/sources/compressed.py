"""The bytes of a tar archive, unpacked as they are asked for, with a bound on what a header may take."""

import bz2
import gzip
import importlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from finetune.errors import DataError

HEADER_BYTES = 8 << 20
"""a header with its extensions, which `tarfile` reads as a whole"""
_CHUNK = 1 << 16
BROKEN = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)
"""what reading damaged or incomplete compressed bytes raises, beside OSError"""
_MAGIC = ((b"\x1f\x8b", "gz"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zst"))


class Opened(io.RawIOBase):
    """A file for `tarfile`, which can only go on in it."""

    def __init__(self, content: IO[bytes], path: Path) -> None:
        super().__init__()
        self._content, self._path = content, path
        self.tail = b""
        """what was read last: at the end of an archive, a block"""
        self._at = 0
        self.any_read = False
        self._header_left: int | None = None

    def allow_header(self) -> None:
        """What is read from now on is a header."""
        self._header_left = HEADER_BYTES

    def allow_content(self) -> None:
        self._header_left = None

    def seek(self, to: int, whence: int = 0) -> int:
        """Raises StreamError: backwards."""
        if whence == io.SEEK_CUR and not to:
            return self._at
        if to < self._at or whence:
            raise tarfile.StreamError("its files do not follow each other")
        while self._at < to and self.read(min(_CHUNK, to - self._at)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        if self._header_left is not None:
            self._header_left -= size
            if self._header_left < 0:
                raise DataError(f"{self._path}: a header has more than {HEADER_BYTES >> 20} MiB", "unpack it yourself")
        found = self._content.read(size)
        self._at += len(found)
        self.tail = found
        self.any_read = self.any_read or bool(found)
        return found


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Raises DataError: this Python cannot unpack it. Raises OSError."""
    with path.open("rb") as raw:
        head = raw.read(8)
        raw.seek(0)
        kind = next((name for magic, name in _MAGIC if head.startswith(magic)), "")
        with _unpacked(raw, kind, path) as content:
            yield Opened(content, path)


def _unpacked(raw: IO[bytes], kind: str, path: Path) -> IO[bytes]:
    match kind:
        case "gz":
            return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        case "bz2":
            return cast(IO[bytes], bz2.BZ2File(raw))
        case "xz":
            return cast(IO[bytes], lzma.LZMAFile(raw))
        case "zst":
            return cast(IO[bytes], _zstd(path).ZstdFile(raw))
    return raw


def _zstd(path: Path) -> Any:
    try:
        return importlib.import_module("compression.zstd")
    except ImportError as e:
        problem = f"{path} is compressed with zstd, which needs Python 3.14 or newer"
        raise DataError(problem, "unpack it, or pack it as .tar.gz") from e
