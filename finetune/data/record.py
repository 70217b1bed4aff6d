"""What was found out about a folder's pictures, kept between commands: an unchanged file is not read again.

A file is unchanged as long as its size, times and inode are. One that was changed within the last seconds before it was
read is not believed to be, as it may change again without its time moving (git's rule for its index).
"""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
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
from finetune.errors import RunError
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
    file_bytes: int = 0


class Record:
    """The pictures of one folder that were seen, by name relative to it. It is read when it is made."""

    def __init__(self, root: Path, background: Colour) -> None:
        self._file = _record_file(root, background)
        self._known: dict[str, tuple[str, Seen]] = {}
        """name -> (stamp, what is known of a file with that)"""
        self._new = False
        self.read()

    def read(self) -> None:
        """What other commands have kept by now, in place of what this holds."""
        self._known = _read(self._file) if self._file else {}
        self._new = False

    def seen(self, name: str, stamp: str, decoded: bool) -> Seen | None:
        """What is known of a file with this stamp; None: nothing, or it was not `decoded`."""
        kept, seen = self._known.get(name, ("", None))
        if seen is None or not stamp or kept != stamp or (decoded and not seen.decoded):
            return None
        return seen

    def keep(self, name: str, stamp: str, seen: Seen, since_ns: int) -> None:
        """since_ns: when the file had that stamp, and nobody changed it before it was read."""
        if not self._file or not stamp or not _settled(stamp, since_ns) or not name.isprintable():
            return
        self._known[name] = stamp, seen
        self._new = True

    def save(self, stamps: Mapping[str, str]) -> None:
        """Without files that are gone. What cannot be written is found out again the next time."""
        if not (self._new and self._file):
            return
        digest = hashlib.sha256()
        for line in self._lines(stamps):
            digest.update(line)
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            head = digest.hexdigest().encode() + b"\n"
            write_bytes(chain([head], self._lines(stamps)), self._file, flush=False)
        self._new = False

    def _lines(self, stamps: Mapping[str, str]) -> Iterator[bytes]:
        return (
            f"\n{name}\t{stamp}\t{_row(seen)}".encode() for name, (stamp, seen) in self._known.items() if name in stamps
        )

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


def _read(file: Path) -> dict[str, tuple[str, Seen]]:
    """Name -> (stamp, what is known of it); nothing of a file that is not whole. Line by line: it may be large."""
    known, infos, digest = dict[str, tuple[str, Seen]](), dict[str, ImageInfo](), hashlib.sha256()
    try:
        lines = reading.byte_lines(file, MOST_RECORD_BYTES)
        head = next(lines, b"")
        for line in lines:
            digest.update(line)
            with suppress(ValueError):  # of another version, or the empty line at the start
                name, stamp, row = line.decode("utf-8", "replace").rstrip("\n").split("\t", 2)
                known[name] = stamp, _seen(row, stamped_bytes(stamp), infos)
    except OSError:
        return {}
    return known if digest.hexdigest().encode() + b"\n" == head else {}


def _row(seen: Seen) -> str:
    form, mode, size, *rest, _ = seen.info
    info = " ".join(map(str, (form, mode, size.width, size.height, *map(int, rest))))
    return "\t".join((seen.digest, seen.pixels, "decoded" if seen.decoded else "header", seen.looks.hex(), info))


def _seen(row: str, file_bytes: int, infos: dict[str, ImageInfo]) -> Seen:
    """infos: those of other rows, as most are alike. Raises ValueError: this version did not write it."""
    digest, pixels, depth, looks, info = row.split("\t")
    found = infos.get(info) or infos.setdefault(info, _info(info))
    return Seen(digest, found, pixels, depth == "decoded", bytes.fromhex(looks), file_bytes)


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
