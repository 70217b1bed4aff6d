"""What was encoded, kept under a key made of all that went into it, and read when it is asked for.

An entry's key is a hash of content, transform, encoder weights and dtype: it can be shared by every run and is never
stale.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from finetune import tensors as weights
from finetune.caches import default_root as default_root
from finetune.encoding.entries import EntryIndex
from finetune.encoding.shards import Shards, inside
from finetune.encoding.single_files import SingleFiles

STORE_FORMAT = 3
"""of the files"""
KEYS = "2"
"""how keys are made: as they were when each entry had a file of its own, so that these are found"""
KINDS = ("image", "text", "mask")
_VERSION_FOLDER, _KEY_FOLDER = re.compile(r"v\d+"), re.compile("[0-9a-f]{2}")
_ENTRY = re.compile(r"([0-9a-f]{64})\.safetensors|\.([0-9a-f]{64})\.safetensors\..*\.part")


class Store:
    """Tensors by key. Safe to kill and to share: each writer adds to files of its own, and what is read is checked."""

    def __init__(self, root: Path) -> None:
        self.root = root / f"v{STORE_FORMAT}"
        self.hits = self.misses = 0
        self._shards = {kind: Shards(self.root / kind) for kind in KINDS}
        self._old = {kind: SingleFiles(root / "v2" / kind) for kind in KINDS}

    def entries(self, kind: str, keys: Sequence[bytes]) -> EntryIndex:
        """Those of these keys, as far as they are there."""
        return EntryIndex(self._shards[kind], self._old[kind], keys)

    def read(self, kind: str, key: bytes) -> dict[str, Tensor] | None:
        """None: there is none, or it is damaged."""
        return self.entries(kind, [key]).read(0)

    def put(self, kind: str, key: bytes, tensors: Mapping[str, Tensor]) -> None:
        """Raises RunError: the cache cannot be written."""
        self._shards[kind].append(key, weights.to_bytes(tensors))

    def seal(self, kind: str) -> None:
        """What was put is taken for there by later runs, until they read it."""
        self._shards[kind].seal()


class Usage(NamedTuple):
    root: Path
    images: int
    captions: int
    bytes: int


def usage(root: Path) -> Usage:
    files = _files(root)
    count = {kind: sum(p.parts[-3] == kind and p.suffix == ".safetensors" for p in files) for kind in KINDS}
    for folder in _shard_folders(root):
        count[folder.name] += Shards(folder).count()
    return Usage(root, count["image"], count["text"], sum(p.lstat().st_size for p in files))


def clear(root: Path) -> None:
    """Remove every entry, and nothing that is not the cache's own: no link is followed, or removed."""
    for file in _files(root):
        file.unlink(missing_ok=True)
    for folder in reversed(_folders(root)):
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def _files(root: Path) -> list[Path]:
    """Shards, entries of every format before, and what a killed writer left beside them."""
    leaves = [folder for folder in _folders(root) if folder.parent.name in KINDS]
    single = [
        Path(entry.path)
        for folder in leaves
        for entry in inside(folder)
        if entry.is_file(follow_symlinks=False)
        and (named := _ENTRY.fullmatch(entry.name))
        and (named[1] or named[2]).startswith(folder.name)
    ]
    return single + [Path(entry.path) for folder in _shard_folders(root) for entry in Shards(folder).files()]


def _shard_folders(root: Path) -> list[Path]:
    return [folder for folder in _folders(root) if folder.parent == root / f"v{STORE_FORMAT}"]


def _folders(root: Path) -> list[Path]:
    """The cache's own, each after the one that it is in: v2, v2/image, v2/image/0f, v3, v3/image."""
    found, level = list[Path](), [root]
    for names in (_VERSION_FOLDER, re.compile("|".join(KINDS)), _KEY_FOLDER):
        within = [entry for folder in level for entry in inside(folder) if names.fullmatch(entry.name)]
        level = [Path(entry.path) for entry in within if entry.is_dir(follow_symlinks=False)]
        found += level
    return found


def entry_key(*parts: object) -> bytes:
    """An entry's name, of all that went into it."""
    return hashlib.sha256("\0".join(map(repr, (KEYS, *parts))).encode()).digest()
