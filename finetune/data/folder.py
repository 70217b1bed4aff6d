"""The files of a folder: listed, and sorted into ordinary, ignored and rejected ones."""

import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune import resources as shipped
from finetune.choices import FolderNames
from finetune.data.images.colours import WHITE, Colour
from finetune.data.images.diagnose import Reason
from finetune.data.record import file_stamp, stamped_bytes
from finetune.data.rights.licences import Rights
from finetune.data.sources.kinds import is_archive_or_table
from finetune.errors import DataError, action

MIN_SIDE_PX = 32
MAX_ASPECT = 4.0
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
SYSTEM_FOLDERS = {"__macosx"}
now_ns = time.time_ns
_DIGITS = re.compile(r"\d+")


class Rejected(NamedTuple):
    file: str
    reason: Reason
    detail: str


class Rules(NamedTuple):
    """Limits for the images that are used; with `decode` every pixel is read."""

    min_side_px: int = MIN_SIDE_PX
    max_aspect: float = MAX_ASPECT
    background: Colour = WHITE
    decode: bool = True
    rights: Rights = Rights()
    captions_of: Path | None = None
    """A prepared dataset whose captions are taken for the pictures that it has, too."""
    folder_names: FolderNames = "auto"
    """What a folder's name such as `10_sks mug` says."""


class Tree(NamedTuple):
    """Every file under a root, by posix path relative to the root."""

    files: list[str]
    """Regular files, then links to regular files inside the root."""
    ignored: list[str]
    rejected: list[Rejected]
    stamps: dict[str, str]
    """`record.file_stamp` of each file, by name"""
    since_ns: int
    """when they were not yet looked at"""
    links: bool
    """some of the files are links"""

    def bytes_of(self, name: str) -> int:
        return stamped_bytes(self.stamps[name])


def locate_images(path: Path) -> Path:
    """The folder of that name, on disk or bundled.

    Raises:
        DataError: there is no such folder; the hint lists the folders that are there.
    """
    root = shipped.data_path(path)
    if reading.is_dir(root):
        return root
    if reading.is_file(root):
        if is_archive_or_table(root.name):
            step = action("prepare", source=path, out="DIR")
            raise DataError(f"{path} is a file, not a folder of images", "make a dataset of it first", step)
        raise DataError(f"{path} is a file", "give the folder that contains the images")
    near = next((p for p in (root, *root.parents) if reading.is_dir(p)), Path("/"))
    beside = sorted(p.name for p in near.iterdir() if reading.is_dir(p) and not p.name.startswith("."))[:5]
    raise DataError(f"no folder {path}", f"in {near} there are: {', '.join(beside)}" if beside else "check the path")


def walk(root: Path) -> Tree:
    found, real = Tree([], [], [], {}, now_ns(), False), reading.real_path(root)
    links: list[str] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        hidden = _is_system(folder)
        for entry in _entries(root, folder, found.rejected):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{folder}{entry.name}/")
                continue
            name = folder + entry.name
            if hidden or entry.name[0] == "." or entry.name.lower() in SYSTEM_FILES:
                found.ignored.append(_printable(name))
            elif isinstance(stamp := _ordinary(real, entry), tuple):
                found.rejected.append(Rejected(_printable(name), *stamp))
            else:
                found.stamps[name] = stamp
                (links if entry.is_symlink() else found.files).append(name)
    found.files.sort()
    found.files.sort(key=natural)
    files = found.files + sorted(links, key=natural)
    return found._replace(files=files, ignored=sorted(found.ignored), links=bool(links))


def _entries(root: Path, folder: str, rejected: list[Rejected]) -> Iterator[os.DirEntry[str]]:
    """One after the other: each keeps what the system told of its file, which is much of very many. A folder that
    cannot be listed is rejected."""
    try:
        with os.scandir(root / folder) as inside:
            yield from inside
    except OSError as e:
        rejected.append(Rejected(folder.rstrip("/") or ".", "unreadable", e.strerror or str(e)))


def _is_system(folder: str) -> bool:
    """Whether the files of a folder, given as `a/b/`, are hidden, or the system's own."""
    return any(part.startswith(".") or part in SYSTEM_FOLDERS for part in folder.lower().split("/"))


def _ordinary(root: Path, entry: os.DirEntry[str]) -> str | tuple[Reason, str]:
    """The stamp of a regular file of the folder; of another entry, which is not opened, the reason. root: its real
    path."""
    if entry.is_symlink():
        target = reading.real_path(Path(entry.path))
        if not reading.exists(target):
            return "link", "the link points to nothing"
        if reading.is_dir(target):
            return "link", "links to folders are not followed; copy the folder"
        if not target.is_relative_to(root):
            return "link", "the link points outside of the folder; copy the file"
    try:
        found = entry.stat()
    except OSError as e:
        return "unreadable", e.strerror or str(e)
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited on for ever
        return "unreadable", "it is not a regular file"
    if not entry.name.isascii() and _printable(entry.name) != entry.name:
        return "unreadable", "its name is not UTF-8; rename it"
    return file_stamp(found)


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def natural(name: str) -> str:
    """Sorts img2 before img10: of numbers first by how many digits they have."""
    return _DIGITS.sub(_by_length, name)


def _by_length(found: re.Match[str]) -> str:
    number = str(int(found[0]))
    return f"\0{chr(len(number))}{number}"
