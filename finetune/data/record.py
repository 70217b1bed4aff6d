"""What was found out about a folder's pictures, kept between commands: an unchanged file is not read again.

A file is unchanged as long as its size, times and inode are. One that was changed within the last seconds before it was
read is not believed to be, as it may change again without its time moving (git's rule for its index).
"""

import hashlib
import io
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

from finetune import reading
from finetune.caches import default_root
from finetune.data.images.buckets import Size
from finetune.data.images.colours import Colour
from finetune.data.images.decode import DECODER, ImageInfo
from finetune.errors import DataError, RunError
from finetune.saving import write_bytes

RECORD_VERSION = "2"
"""to be raised with every change of what is found out about a file"""
KEPT_IN = "datasets"
"""in the cache"""
SETTLED_NS = 2_000_000_000
"""FAT counts in steps of two seconds, and clocks of file servers differ"""
MOST_RECORD_BYTES = 1 << 30
_OWN = re.compile(r"[0-9a-f]{64}\.(seen|lock)|\.[0-9a-f]{64}\.seen\..*\.part")
LONGEST_WAIT_S = 600
"""for another process that looks at the same pictures"""


class Seen(NamedTuple):
    """What reading a picture's file told."""

    digest: str
    """SHA-256 of its bytes"""
    info: ImageInfo
    pixels: str
    """digest of its pixels, as `decode.inspect_pixels` gives it"""
    decoded: bool
    """every pixel was read, not the header alone"""
    looks: bytes = b""
    """how a picture that was decoded looks, as `looks.measure_looks` packs it"""


class Record:
    """The pictures of one folder that were seen, by name relative to it. It is read when it is made."""

    def __init__(self, root: Path, background: Colour) -> None:
        self._file = _record_file(root, background)
        self._rows: dict[str, str] = {}
        self._infos: dict[str, ImageInfo] = {}
        self._new = False
        self.read()

    def read(self) -> None:
        """What other commands have kept by now, in place of what this holds."""
        self._rows = _rows(self._file) if self._file else {}
        self._new = False

    def seen(self, name: str, stamp: str, decoded: bool) -> Seen | None:
        """What is known of a file with this stamp; None: nothing, or it was not `decoded`."""
        row = self._rows.get(name)
        if row is None or not stamp or not row.startswith(stamp):
            return None
        try:
            kept, digest, pixels, depth, looks, info = row.split("\t")
            if kept != stamp or (decoded and depth != "decoded"):
                return None
            found = self._infos.get(info) or self._infos.setdefault(info, _info(info))
            return Seen(digest, found, pixels, depth == "decoded", bytes.fromhex(looks))
        except ValueError:
            return None

    def keep(self, name: str, stamp: str, seen: Seen, since_ns: int) -> None:
        """since_ns: when the file had that stamp, and nobody changed it before it was read."""
        if not self._file or not stamp or not _settled(stamp, since_ns) or not name.isprintable():
            return
        form, mode, size, *rest, _ = seen.info
        info = " ".join(map(str, (form, mode, size.width, size.height, *map(int, rest))))
        depth = "decoded" if seen.decoded else "header"
        self._rows[name] = "\t".join((stamp, seen.digest, seen.pixels, depth, seen.looks.hex(), info))
        self._new = True

    def save(self, stamps: Mapping[str, str]) -> None:
        """Without files that are gone. What cannot be written is found out again the next time."""
        if not (self._new and self._file):
            return
        content, digest = bytearray(65), hashlib.sha256()
        for name, row in self._rows.items():
            if name in stamps:
                line = f"\n{name}\t{row}".encode()
                content += line
                digest.update(line)
        content[:65] = digest.hexdigest().encode() + b"\n"
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(content, self._file, flush=False)
        self._new = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Other processes that want to look at the same pictures wait until the block ends, and need not then."""
        descriptor = self._opened()
        try:
            if descriptor is not None and _locked(descriptor):
                self.read()
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _opened(self) -> int | None:
        if self._file:
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                return os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        return None


def file_stamp(found: os.stat_result) -> str:
    """Equal of two looks at a file that was not changed in between; "" where the system tells too little."""
    if os.name != "posix":
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def stamped_bytes(stamp: str) -> int:
    """The size of a file with that stamp."""
    return int(stamp.partition(" ")[0] or 0)


class Records(NamedTuple):
    """What a cache holds of datasets."""

    datasets: int
    bytes: int


def records(root: Path) -> Records:
    """root: of the cache."""
    files = _files(root)
    return Records(sum(file.suffix == ".seen" for file in files), sum(file.lstat().st_size for file in files))


def forget(root: Path) -> None:
    """Remove all that a cache holds of datasets, and nothing else."""
    for file in _files(root):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it, or it was never there
        (root / KEPT_IN).rmdir()


def _files(root: Path) -> list[Path]:
    try:
        if os.path.islink(root / KEPT_IN):  # leads out of it
            return []
        with os.scandir(root / KEPT_IN) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if _OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return []


def _record_file(root: Path, background: Colour) -> Path | None:
    key = "\0".join(map(str, (RECORD_VERSION, DECODER, reading.real_path(root), background)))
    try:
        return default_root() / KEPT_IN / f"{hashlib.sha256(os.fsencode(key)).hexdigest()}.seen"
    except RunError:
        return None


def _rows(file: Path) -> dict[str, str]:
    """Name -> what is known of it; nothing of a file that is not whole."""
    try:
        content = reading.read_bytes(file, DataError, limit=MOST_RECORD_BYTES)
    except DataError:
        return {}
    if hashlib.sha256(memoryview(content)[65:]).hexdigest().encode() != content[:64]:
        return {}
    lines = (line.decode("utf-8", "replace").rstrip("\n") for line in islice(io.BytesIO(content), 2, None))
    return {name: row for name, _, row in (line.partition("\t") for line in lines)}


def _info(text: str) -> ImageInfo:
    """Raises ValueError: this version did not write it."""
    form, mode, *numbers = text.split(" ")
    width, height, orientation, alpha, bits, profile, long_text = map(int, numbers)
    return ImageInfo(form, mode, Size(width, height), orientation, bool(alpha), bits, bool(profile), bool(long_text))


def _settled(stamp: str, since_ns: int) -> bool:
    _, modified, changed, _ = stamp.split(" ")
    return max(int(modified), int(changed)) + SETTLED_NS < since_ns


def _locked(descriptor: int) -> bool:
    """False: there are no locks here, or another process takes too long."""
    end = time.monotonic() + LONGEST_WAIT_S
    while fcntl is not None and time.monotonic() < end:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break
    return False
