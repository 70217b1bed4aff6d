"""What was encoded, kept under a name made of all that went into it, and read when it is asked for.

An entry's name is a hash of content, transform, encoder weights, dtype and format version: it can be shared by every
run and is never stale.
"""

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor

from finetune import reading
from finetune import tensors as weights
from finetune.caches import default_root as default_root
from finetune.errors import BaseError, RunError

K = TypeVar("K")
V = TypeVar("V")
HELD_BYTES = 512 * 2**20
"""what is held in memory of encoded images, and of each encoder's captions; the rest is read again when it is shown"""
VERSION = "2"
KINDS = ("image", "text")
_VERSION_FOLDER, _KEY_FOLDER = re.compile(r"v\d+"), re.compile("[0-9a-f]{2}")
_ENTRY = re.compile(r"([0-9a-f]{64})\.safetensors|\.([0-9a-f]{64})\.safetensors\..*\.part")


class Store:
    """Tensors by key. Safe to kill and to share: an entry is written beside and renamed, and checked when read."""

    def __init__(self, root: Path) -> None:
        self.root = root / f"v{VERSION}"
        self.hits = self.misses = 0

    def get(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """As `read`, and counted."""
        found = self.read(kind, key)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def read(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """None: there is none, or it is damaged."""
        path = self._path(kind, key)
        try:
            found = weights.load_tensors(path) if reading.is_file(path) else None
            if found is None or weights.fingerprint(found) != weights.read_header(path).metadata.get("sha256"):
                return None
        except (BaseError, OSError):  # another process clears the cache meanwhile
            return None
        return found

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Raises RunError: the cache cannot be written."""
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            weights.write_tensors(
                tensors, path, {"sha256": weights.fingerprint(tensors)}, flush=False
            )  # checked by `get`
        except OSError as e:
            raise RunError(
                f"cannot write into the cache {self.root}: {e.strerror}",
                "free some space, or name another folder: data.cache, or the variable FINETUNE_CACHE",
            ) from e

    def _path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / f"{key}.safetensors"


class Stored(Mapping[K, V]):
    """Entries of the store by what they were made of. Each is read when it is asked for; the last ones are held."""

    def __init__(
        self, store: Store, kind: str, made: Callable[[dict[str, Tensor]], V], held_bytes: int | None = None
    ) -> None:
        self.store, self.kind, self.made = store, kind, made
        self.held_bytes = HELD_BYTES if held_bytes is None else held_bytes
        self.keys_of: dict[K, str] = {}
        self.held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self.bytes = 0

    def add(self, name: K, key: str, entry: dict[str, Tensor]) -> None:
        """An entry that is in the store under this key."""
        self.keys_of[name] = key
        self._hold(key, entry)

    def __getitem__(self, name: K) -> V:
        """Raises RunError: the entry is no longer in the store."""
        key = self.keys_of[name]
        entry = self.held.get(key) or self.store.read(self.kind, key)
        if entry is None:
            raise RunError(
                f"an entry has gone from the cache {self.store.root}, or is damaged: {self.kind} {key}",
                "resume the run: what is missing is encoded again",
            )
        self._hold(key, entry)
        return self.made(entry)

    def __iter__(self) -> Iterator[K]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)

    def _hold(self, key: str, entry: dict[str, Tensor]) -> None:
        if key not in self.held:
            self.bytes += _bytes(entry)
        self.held[key] = entry
        self.held.move_to_end(key)
        while self.bytes > self.held_bytes and len(self.held) > 1:
            self.bytes -= _bytes(self.held.popitem(last=False)[1])


def _bytes(entry: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in entry.values())


class Usage(NamedTuple):
    root: Path
    images: int
    captions: int
    bytes: int


def usage(root: Path) -> Usage:
    files = _files(root)
    count = {kind: sum(p.parts[-3] == kind and p.suffix == ".safetensors" for p in files) for kind in KINDS}
    return Usage(root, count["image"], count["text"], sum(p.lstat().st_size for p in files))


def clear(root: Path) -> None:
    """Remove every entry, and nothing that is not the cache's own: no link is followed, or removed."""
    for file in _files(root):
        file.unlink(missing_ok=True)
    for folder in reversed(_folders(root)):
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def _files(root: Path) -> list[Path]:
    """Entries of every format version, and what a killed writer left beside them."""
    leaves = [folder for folder in _folders(root) if folder.parent.name in KINDS]
    return [
        Path(entry.path)
        for folder in leaves
        for entry in _inside(folder)
        if entry.is_file(follow_symlinks=False)
        and (named := _ENTRY.fullmatch(entry.name))
        and (named[1] or named[2]).startswith(folder.name)
    ]


def _folders(root: Path) -> list[Path]:
    """The cache's own, each after the one that it is in: v2, v2/image, v2/image/0f."""
    found, level = list[Path](), [root]
    for names in (_VERSION_FOLDER, re.compile("|".join(KINDS)), _KEY_FOLDER):
        inside = [entry for folder in level for entry in _inside(folder) if names.fullmatch(entry.name)]
        level = [Path(entry.path) for entry in inside if entry.is_dir(follow_symlinks=False)]
        found += level
    return found


def _inside(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def entry_key(*parts: object) -> str:
    """An entry's name, of all that went into it."""
    return hashlib.sha256("\0".join(map(repr, (VERSION, *parts))).encode()).hexdigest()
