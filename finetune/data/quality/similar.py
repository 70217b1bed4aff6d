"""Pictures that look alike, found by their fingerprints without comparing each with each.

Two fingerprints of 64 bits that differ in few bits agree in one of their four quarters but for a few bits, so only
those are compared that have such a quarter (multi-index hashing, Norouzi et al., arXiv:1307.2982). A picture is
compared with the first of each group only: of 10,000 frames of a film few are first.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

_QUARTERS, _BITS = 4, 16
_SAME_COLOURS = 48
"""levels by which a part of a copy may differ: fingerprints know no colours"""
_MIRRORED = 0x5555_5555_5555_5555
"""the bits that a mirror turns: waves that are odd from left to right"""
_ROW = 12
"""bytes of a row of parts"""


class Fingerprint(NamedTuple):
    bits: int
    cells: bytes
    """RGB of 4 x 4 parts"""


class NearCopy(NamedTuple):
    """That a picture looks like another one."""

    of: int
    """which it is like, by number"""
    distance: int
    """bits in which the fingerprints differ"""
    mirrored: bool


def likenesses(
    pictures: Sequence[Fingerprint], most: int, apart: frozenset[int] = frozenset()
) -> list[NearCopy | None]:
    """Of each picture the nearest earlier one that it looks like, which is the first of its group; None: it is the
    first itself. The best come first. apart: pictures that later ones are compared with in any case."""
    index = _Index(most)
    found: list[NearCopy | None] = []
    for number, one in enumerate(pictures):
        likeness = index.nearest(one, pictures)
        if likeness is None or number in apart:
            index.add(one.bits, number, False)
            index.add(one.bits ^ _MIRRORED, number, True)
        found.append(likeness)
    return found


class _Index:
    """Fingerprints by their quarters."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._masks = list(_masks(most // _QUARTERS))
        self._tables: tuple[dict[int, list[int]], ...] = tuple({} for _ in range(_QUARTERS))
        self._owners: dict[int, list[tuple[int, bool]]] = {}

    def add(self, bits: int, number: int, mirrored: bool) -> None:
        owners = self._owners.setdefault(bits, [])
        owners.append((number, mirrored))
        if len(owners) == 1:
            for table, quarter in zip(self._tables, _quarters(bits), strict=True):
                table.setdefault(quarter, []).append(bits)

    def nearest(self, one: Fingerprint, pictures: Sequence[Fingerprint]) -> NearCopy | None:
        bits, most, near = one.bits, self._most, set[int]()
        for table, quarter in zip(self._tables, _quarters(bits), strict=True):
            entries = chain.from_iterable(filter(None, map(table.get, map(quarter.__xor__, self._masks))))
            near.update([other for other in entries if (other ^ bits).bit_count() <= most])
        alike = (
            NearCopy(number, (other ^ bits).bit_count(), mirrored)
            for other in near
            for number, mirrored in self._owners[other]
            if _same_colours(one.cells, pictures[number].cells, mirrored)
        )
        return min(alike, key=lambda like: (like.distance, like.mirrored, like.of), default=None)


def _quarters(bits: int) -> tuple[int, ...]:
    return bits & 0xFFFF, bits >> 16 & 0xFFFF, bits >> 32 & 0xFFFF, bits >> 48


def _masks(wrong: int) -> Iterator[int]:
    """All ways in which up to so many bits of a quarter may be wrong."""
    for number in range(wrong + 1):
        for places in combinations(range(_BITS), number):
            yield sum(1 << place for place in places)


def _same_colours(cells: bytes, others: bytes, mirrored: bool) -> bool:
    if mirrored:
        rows = (others[at : at + _ROW] for at in range(0, len(others), _ROW))
        others = b"".join(row[at : at + 3] for row in rows for at in range(_ROW - 3, -1, -3))
    return all(abs(one - other) <= _SAME_COLOURS for one, other in zip(cells, others, strict=True))
