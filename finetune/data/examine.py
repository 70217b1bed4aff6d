"""The pictures of a folder, looked at: what each is, its digest, and whether it can be used."""

import hashlib
from collections.abc import Collection, Generator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from finetune.data.folder import Rejected, Rules, Tree, walk
from finetune.data.images import costs, decode, workers
from finetune.data.images.buckets import Size
from finetune.data.images.decode import ImageInfo
from finetune.data.images.diagnose import Unusable
from finetune.data.record import Record, Seen
from finetune.events import Advanced, Event, Stage

MANY, MUCH_BYTES = 500, 64 << 20
"""pictures, or bytes of them, that take long enough to say how far they are, and to be left to another process that
looks at them already"""
_SAID = 100
"""times at most that is said how far they are"""


class Examined(NamedTuple):
    """The pictures that can be used, by name, in order, and those that cannot."""

    seen: dict[str, Seen]
    rejected: list[Rejected]


def examine(
    root: Path, names: Sequence[str], tree: Tree, rules: Rules, twins: "Twins | None" = None,
    apart: Collection[str] = (),
) -> Generator[Event, None, Examined]:  # fmt: skip
    """Looks at each file, in order; of one that was seen before and is unchanged, only at the record. Of files with the
    same bytes only the first is used; of files that are decoded, and that a prepared dataset would hold as the same
    PNG, as well. twins: what was seen before, in other folders. apart: what is not compared with others."""
    known = yield from seen_files(root, names, tree, rules)
    examined, twins = Examined({}, []), twins or Twins.none()
    for name in names:
        found = known[name]
        if isinstance(found, Rejected):
            examined.rejected.append(found)
        elif fault := _shape_fault(name, found.info.size, rules) or (name not in apart and twins.fault(name, found)):
            examined.rejected.append(fault)
        else:
            examined.seen[name] = found
    return examined


def seen_files(
    root: Path, names: Sequence[str], tree: Tree, rules: Rules
) -> Generator[Event, None, dict[str, Seen | Rejected]]:
    """What each file is, from the record of earlier commands, or found out now, and kept for later ones."""
    record = Record(root, rules.background)
    known, unknown = _sorted(record, names, tree, rules)
    long = len(unknown) >= MANY or sum(map(tree.bytes_of, unknown)) >= MUCH_BYTES
    with record.alone() if long else nullcontext():
        if long:
            known, unknown = _sorted(record, names, tree, rules)
            yield Stage("checking images", len(unknown))
        try:
            yield from _look(root, unknown, tree, rules, record, known)
        finally:
            record.save(tree.stamps)
    return known


def looks_of(root: Path, names: Sequence[str]) -> Generator[Event, None, dict[str, bytes]]:
    """How pictures look, by name, packed; those of which it is not known yet are decoded."""
    tree = walk(root)
    known = yield from seen_files(root, [name for name in names if name in tree.stamps], tree, Rules())
    return {name: seen.looks for name, seen in known.items() if isinstance(seen, Seen)}


def _sorted(
    record: Record, names: Sequence[str], tree: Tree, rules: Rules
) -> tuple[dict[str, Seen | Rejected], list[str]]:
    """(what the record has, the files that it does not have as they are now)."""
    known: dict[str, Seen | Rejected] = {}
    for name in names:
        if seen := record.seen(name, tree.stamps[name], rules.decode):
            known[name] = seen
    return known, [name for name in names if name not in known]


def _look(
    root: Path, names: Sequence[str], tree: Tree, rules: Rules, record: Record, known: dict[str, Seen | Rejected]
) -> Generator[Event, None, None]:
    shared: dict[ImageInfo, ImageInfo] = {}
    every = max(1, len(names) // _SAID)
    look = partial(_looked_at, root, tree, rules)
    with closing(workers.in_order(look, names, tree.bytes_of, workers.worker_count())) as found:
        for done, (name, seen) in enumerate(zip(names, found, strict=True), 1):
            if isinstance(seen, Seen):
                seen = seen._replace(info=shared.setdefault(seen.info, seen.info))
                record.keep(name, tree.stamps[name], seen, tree.since_ns)
            known[name] = seen
            if done % every == 0 and len(names) >= MANY:
                yield Advanced(done)


def _looked_at(root: Path, tree: Tree, rules: Rules, name: str) -> Seen | Rejected:
    path = root / name
    try:
        with costs.FILES.taken(tree.bytes_of(name)):
            data = decode.contents(path)
            if rules.decode:
                info, pixels, looks = decode.inspect_pixels(path, data, rules.background)
            else:
                info, pixels, looks = decode.inspect_bytes(path, data, decode=False), "", b""
            return Seen(hashlib.sha256(data).hexdigest(), info, pixels, rules.decode, looks, len(data))
    except Unusable as e:
        return Rejected(name, e.reason, e.detail)


class Twins(NamedTuple):
    """Names of files by what they will be in a prepared dataset."""

    bytes: dict[str, str]
    converted: dict[str, str]
    """by the pixels of the PNG that each will be"""
    copied: dict[str, str]
    """PNG files that are copied, by their pixels"""
    label: str = ""
    """what names begin with in the folder that is looked at"""

    @classmethod
    def none(cls) -> "Twins":
        return cls({}, {}, {})

    def of(self, label: str) -> "Twins":
        """For another folder."""
        return self._replace(label=label)

    def fault(self, name: str, seen: Seen) -> Rejected | None:
        """What an earlier file has in common with this one; None where there is none, and this one is kept in mind."""
        own = self.label + name
        if earlier := self.bytes.setdefault(seen.digest, own):
            if earlier != own:
                return Rejected(name, "exact duplicate", f"the same bytes as {earlier}")
        if not (pixels := seen.pixels):
            return None
        copied = decode.needs_no_change(seen.info)
        if earlier := self.converted.get(pixels) or (not copied and self.copied.get(pixels)) or "":
            del self.bytes[seen.digest]
            return Rejected(name, "exact duplicate", f"the same pixels as {earlier}")
        (self.copied if copied else self.converted).setdefault(pixels, own)
        return None


def _shape_fault(name: str, size: Size, rules: Rules) -> Rejected | None:
    least, most = (size.width, size.height) if size.width < size.height else (size.height, size.width)
    if least >= rules.min_side_px and most <= rules.max_aspect * least:
        return None
    shown = f"{size.width} x {size.height} px"
    if least < rules.min_side_px:
        detail = f"{shown}; the shorter side must have at least {rules.min_side_px} px"
        return Rejected(name, "too small", detail)
    return Rejected(name, "extreme aspect", f"{shown} has an aspect ratio above {rules.max_aspect:g} : 1; crop it")
