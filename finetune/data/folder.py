"""The files of a folder: listed, sorted into images, ignored and rejected ones, and the images inspected."""

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune import resources as shipped
from finetune.data import decode
from finetune.data.buckets import Size
from finetune.data.colours import WHITE, Colour
from finetune.data.decode import ImageInfo
from finetune.data.diagnose import Reason, Unusable
from finetune.errors import DataError

MIN_SIDE_PX = 32
MAX_ASPECT = 4.0
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
SYSTEM_FOLDERS = {"__macosx"}


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


class Tree(NamedTuple):
    """Every file under a root, by posix path relative to the root."""

    files: list[str]
    """Regular files, then links to regular files inside the root."""
    ignored: list[str]
    rejected: list[Rejected]


class Examined(NamedTuple):
    infos: dict[str, ImageInfo]
    digests: dict[str, str]
    rejected: list[Rejected]


def locate_images(path: Path) -> Path:
    """The folder of that name, on disk or bundled.

    Raises:
        DataError: there is no such folder; the hint lists the folders that are there.
    """
    root = shipped.data_path(path)
    if reading.is_dir(root):
        return root
    if reading.is_file(root):
        raise DataError(f"{path} is a file", "give the folder that contains the images; unpack archives first")
    near = next((p for p in (root, *root.parents) if reading.is_dir(p)), Path("/"))
    beside = sorted(p.name for p in near.iterdir() if reading.is_dir(p) and not p.name.startswith("."))[:5]
    raise DataError(f"no folder {path}", f"in {near} there are: {', '.join(beside)}" if beside else "check the path")


def walk(root: Path) -> Tree:
    files: list[str] = []
    links: list[str] = []
    ignored: list[str] = []
    rejected: list[Rejected] = []

    def unreadable(error: OSError) -> None:
        name = Path(str(error.filename)).relative_to(root).as_posix()
        rejected.append(Rejected(name, "unreadable", error.strerror or str(error)))

    for folder, inner, names in os.walk(root, onerror=unreadable):
        linked = [n for n in inner if (Path(folder) / n).is_symlink()]
        for entry in sorted([*names, *linked]):
            file = Path(folder) / entry
            name = file.relative_to(root).as_posix()
            if _is_system(name):
                ignored.append(_printable(name))
            elif why := _not_ordinary(root, file):
                rejected.append(Rejected(_printable(name), *why))
            else:
                (links if file.is_symlink() else files).append(name)
    return Tree([*sorted(files, key=natural), *sorted(links, key=natural)], sorted(ignored), rejected)


def _is_system(name: str) -> bool:
    *folders, last = name.lower().split("/")
    hidden = any(part.startswith(".") or part in SYSTEM_FOLDERS for part in folders)
    return hidden or last.startswith(".") or last in SYSTEM_FILES


def _not_ordinary(root: Path, file: Path) -> tuple[Reason, str] | None:
    """The reason why a directory entry is not opened; None for a regular file of the folder."""
    if file.is_symlink():
        target = reading.real_path(file)
        if not reading.exists(target):
            return "link", "the link points to nothing"
        if reading.is_dir(target):
            return "link", "links to folders are not followed; copy the folder"
        if not target.is_relative_to(reading.real_path(root)):
            return "link", "the link points outside of the folder; copy the file"
    try:
        mode = file.stat().st_mode
    except OSError as e:
        return "unreadable", e.strerror or str(e)
    if not stat.S_ISREG(mode):  # a pipe would be waited on for ever
        return "unreadable", "it is not a regular file"
    if _printable(file.name) != file.name:
        return "unreadable", "its name is not UTF-8; rename it"
    return None


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts img2 before img10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def examine(root: Path, names: Sequence[str], rules: Rules) -> Examined:
    """Inspects each file, in natural order. Of files with the same bytes only the first is used; of files that are
    decoded, and that a prepared dataset would hold as the same PNG, as well."""
    examined = Examined({}, {}, [])
    twins = _Twins({}, {}, {})
    for name in names:
        path = root / name
        try:
            data = decode.contents(path)
            if rules.decode:
                info, pixels = decode.inspect_pixels(path, data, rules.background)
            else:
                info, pixels = decode.inspect_bytes(path, data, decode=False), ""
            _refuse_shape(path, info.size, rules)
            digest = hashlib.sha256(data).hexdigest()
            if twin := twins.twin(name, digest, pixels, decode.needs_no_change(info)):
                raise Unusable(path, "exact duplicate", twin)
        except Unusable as e:
            examined.rejected.append(Rejected(name, e.reason, e.detail))
            continue
        examined.infos[name], examined.digests[name] = info, digest
    return examined


class _Twins(NamedTuple):
    """Names of files by what they will be in a prepared dataset."""

    bytes: dict[str, str]
    converted: dict[str, str]
    """by the pixels of the PNG that each will be"""
    copied: dict[str, str]
    """PNG files that are copied, by their pixels"""

    def twin(self, name: str, digest: str, pixels: str, copied: bool) -> str:
        """What an earlier file has in common with this one; "" where there is none, and this one is kept in mind."""
        if earlier := self.bytes.get(digest):
            return f"the same bytes as {earlier}"
        if pixels and (earlier := self.converted.get(pixels) or (not copied and self.copied.get(pixels)) or ""):
            return f"the same pixels as {earlier}"
        self.bytes[digest] = name
        if pixels:
            (self.copied if copied else self.converted).setdefault(pixels, name)
        return ""


def _refuse_shape(path: Path, size: Size, rules: Rules) -> None:
    shown = f"{size.width} x {size.height} px"
    if min(size) < rules.min_side_px:
        raise Unusable(path, "too small", f"{shown}; the shorter side must have at least {rules.min_side_px} px")
    if max(size) > rules.max_aspect * min(size):
        raise Unusable(path, "extreme aspect", f"{shown} has an aspect ratio above {rules.max_aspect:g} : 1; crop it")
