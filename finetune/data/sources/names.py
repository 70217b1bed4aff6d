"""What a user named as a source: a folder, an archive, a table or a data set of the hub, and its weight."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from finetune import reading
from finetune import resources as shipped
from finetune.data.attributes import LARGEST_WEIGHT
from finetune.data.folder import locate_images
from finetune.data.images.signatures import IMAGE_SUFFIXES
from finetune.data.sources.kinds import ARCHIVES, TABLE_READERS
from finetune.errors import DataError

SHARDS = (".parquet", ".arrow")
"""tables that hold pictures: a folder of them, without a picture beside, is one source"""
SAVED = ("state.json", "dataset_dict.json")
"""in the folders of `Dataset.save_to_disk`"""
_FOREIGN_ARCHIVES = (".rar", ".7z", ".lz4", ".gz", ".xz", ".bz2", ".zst")
_WEIGHTED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf|nan)", re.DOTALL)
_HUB = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]+))?")

Named = Path | str
SourceKind = Literal["folder", "archive", "table", "hub"]


class Source(NamedTuple):
    written: str
    """As the user wrote it, without the weight."""
    kind: SourceKind
    path: Path
    """Not of a data set of the hub."""
    weight: float = 1.0
    hub: str = ""
    """`org/name` of the hub."""
    revision: str = ""
    label: str = ""
    """What its pictures' names begin with, where there are several sources."""


def understood(written: Named | Sequence[Named]) -> list[Source]:
    """The sources, in order, each with a label of its own.

    Raises:
        DataError: one is not there, is none, has a weight that cannot be, or is named twice.
    """
    given = [written] if isinstance(written, Path | str) else list(written)
    if not given:
        raise DataError("there is no source", "name the folder that holds the images")
    found = [_source(one) for one in given]
    seen: dict[str, Source] = {}
    for source in found:
        key = f"{source.hub}@{source.revision}" if source.hub else str(reading.real_path(source.path))
        if seen.setdefault(key, source) is not source:
            raise DataError(f"{source.written} is named twice", f"name it once, with a weight: {source.written}:2")
    return _labelled(found)


def _source(written: Named) -> Source:
    text = str(written)
    if isinstance(written, Path) or reading.exists(shipped.data_path(Path(text))):
        return _kind(text, 1.0)
    if weighted := _WEIGHTED.fullmatch(text):
        return _kind(weighted[1], _weight(text, weighted[2]))
    return _kind(text, 1.0)


def _weight(text: str, number: str) -> float:
    weight = float(number)
    if not 0 < weight <= LARGEST_WEIGHT:
        raise DataError(
            f"{text}: {number} is not a weight, and there is no folder of that name",
            f"a weight is a number above 0, up to {LARGEST_WEIGHT:g}: {text.rpartition(':')[0]}:2",
        )
    return weight


def _kind(text: str, weight: float) -> Source:
    path = shipped.data_path(Path(text))
    if reading.is_dir(path):
        return Source(text, "table" if holds_tables(path) else "folder", path, weight)
    if reading.is_file(path):
        return Source(text, _kind_of_file(path), path, weight)
    hub = _HUB.fullmatch(text)
    if hub and not reading.exists(Path(text).parent) and ".." not in text:
        return Source(text, "hub", Path(hub[1]), weight, hub[1], hub[2] or "")
    locate_images(Path(text))
    raise AssertionError("a folder that is not there is refused")


def _kind_of_file(path: Path) -> SourceKind:
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        return "archive"
    if name.endswith(tuple(TABLE_READERS)):
        return "table"
    if name.endswith(IMAGE_SUFFIXES):
        raise DataError(f"{path} is one image", f"give the folder that contains the images: {path.parent}")
    if name.endswith(_FOREIGN_ARCHIVES):
        raise DataError(f"{path} is an archive of an unsupported kind", "unpack it, and give the folder")
    raise DataError(f"{path} is a file", f"a source is a folder, a zip or tar archive, or a table: {_kinds()}")


def holds_tables(folder: Path) -> bool:
    """Whether a folder's pictures are inside of tables: it was saved by `datasets`, or is a clone of a repository."""
    if any(reading.is_file(folder / name) for name in SAVED):
        return True
    tables = False
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        lower = [name.lower() for name in files]
        if any(name.endswith(IMAGE_SUFFIXES) for name in lower):
            return False
        tables = tables or any(name.endswith(SHARDS) and not name.startswith("metadata.") for name in lower)
    return tables


def _labelled(found: Sequence[Source]) -> list[Source]:
    labels: list[str] = []
    for source in found:
        label = source.hub.replace("/", "--") or _stem(source.path)
        number, wanted = 1, label
        while _folded(label) in map(_folded, labels):
            number += 1
            label = f"{wanted}-{number}"
        labels.append(label)
    return [source._replace(label=label) for source, label in zip(found, labels, strict=True)]


def _stem(path: Path) -> str:
    name = reading.real_path(path).name or "images"
    ends: Iterable[str] = (*ARCHIVES, *TABLE_READERS) if not reading.is_dir(path) else ()
    end = max((e for e in ends if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(end)] or name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _kinds() -> str:
    return ", ".join(end.removeprefix(".") for end in TABLE_READERS)
