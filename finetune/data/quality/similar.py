"""Pictures that look alike, found by their fingerprints without comparing each with each.

Two fingerprints of 64 bits that differ in few bits agree in one of their four quarters but for a few bits, so only
those are compared that have such a quarter (multi-index hashing, Norouzi et al., arXiv:1307.2982). A picture is
compared with the first of each group only: of 10,000 frames of a film few are first. Pictures come in blocks: each is
compared with the first ones of earlier blocks by their quarters, and with those of its own block directly.

Shape legend: n pictures; b of a block; c candidates. An entry is a picture's number doubled, and 1 more where it is
mirrored. A rank orders what is like a picture: the nearest first, then what is not mirrored, then the first number.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_QUARTERS, _BITS = 4, 16
_SAME_COLOURS = 48
"""levels by which a part of a copy may differ: fingerprints know no colours"""
_MIRRORED = np.uint64(0x5555_5555_5555_5555)
"""the bits that a mirror turns: waves that are odd from left to right"""
_BLOCK = 512
_AT_ONCE = 1 << 18
"""candidates that are compared at once, or a few more"""
_NUMBER_BITS = 32
_NOTHING = np.iinfo(np.int64).max
"""the rank where nothing is alike"""

_Bits = npt.NDArray[np.uint64]
_Cells = npt.NDArray[np.uint8]
_Numbers = npt.NDArray[np.int64]


class NearCopy(NamedTuple):
    """That a picture looks like another one."""

    of: int
    """which it is like, by number"""
    distance: int
    """bits in which the fingerprints differ"""
    mirrored: bool


def likenesses(bits: _Bits, cells: _Cells, most: int, apart: frozenset[int] = frozenset()) -> list[NearCopy | None]:
    """Of each picture the nearest earlier one that it looks like, which is the first of its group; None: it is the
    first itself. The best come first.

    bits: (n,) fingerprints. cells: (n, 4, 4, 3) RGB of parts. most: bits that may differ. apart: pictures that later
    ones are compared with in any case.
    """
    earlier, found = _Firsts(cells, most), list[NearCopy | None]()
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        ranks, both = earlier.nearest(block, start), _both_ways(block)
        distances = _ones(block[:, None] ^ both)
        near = distances <= most
        crowded = np.count_nonzero(np.tril(near[:, ::2] | near[:, 1::2], -1), axis=1)
        first = np.zeros(len(both), bool)
        for row, rank in enumerate(ranks.tolist()):
            if crowded[row]:
                beside = np.flatnonzero(near[row] & first)
                alike = beside[_same_colours(cells, start + row, beside + 2 * start)]
                rank = min(rank, _ranks(distances[row, alike], alike + 2 * start).min(initial=_NOTHING))
            first[2 * row : 2 * row + 2] = rank == _NOTHING or start + row in apart
            found.append(_near_copy(int(rank)))
        earlier.add(both[first], np.flatnonzero(first) + 2 * start)
    return found


def nearest_known(bits: _Bits, cells: _Cells, most: int, known: int) -> list[NearCopy | None]:
    """Of each picture from the number `known` on, the nearest of those before that."""
    earlier = _Firsts(cells, most)
    earlier.add(_both_ways(bits[:known]), np.arange(2 * known))
    starts = range(known, len(bits), _BLOCK)
    return [_near_copy(rank) for at in starts for rank in earlier.nearest(bits[at : at + _BLOCK], at).tolist()]


def _both_ways(bits: _Bits) -> _Bits:
    """(2 n,) of each picture, and of it mirrored."""
    return np.stack([bits, bits ^ _MIRRORED], axis=1).ravel()


class _Firsts:
    """The entries of first pictures, by the quarters of their fingerprints."""

    def __init__(self, cells: _Cells, most: int) -> None:
        self._cells, self._most = cells, most
        self._masks = np.array(list(_masks(most // _QUARTERS)), np.uint16)
        self._bits, self._entries = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._by_quarter: list[tuple[_Numbers, _Numbers]] = []
        """(where those of each quarter begin, places in their order) for each of the four"""

    def add(self, bits: _Bits, entries: _Numbers) -> None:
        self._bits, self._entries = np.concatenate([self._bits, bits]), np.concatenate([self._entries, entries])
        self._by_quarter = [_sorted(_quarter(self._bits, which)) for which in range(_QUARTERS)]

    def nearest(self, block: _Bits, start: int) -> _Numbers:
        """(b,) ranks of what is like each picture of a block, which has the numbers from start on."""
        best = np.full(len(block), _NOTHING, np.int64)
        for which, of_quarter in enumerate(self._by_quarter):
            for rows, places in self._candidates(_quarter(block, which), *of_quarter):
                distances = _ones(block[rows] ^ self._bits[places])
                near = np.flatnonzero(distances <= self._most)
                rows, entries, distances = rows[near], self._entries[places[near]], distances[near]
                alike = _same_colours(self._cells, rows + start, entries)
                np.minimum.at(best, rows[alike], _ranks(distances[alike], entries[alike]))
        return best

    def _candidates(
        self, quarters: npt.NDArray[np.uint16], begins: _Numbers, order: _Numbers
    ) -> Iterator[tuple[_Numbers, _Numbers]]:
        """(c,) rows of a block, and places of entries whose quarter is near enough to that row's."""
        keys = (quarters[:, None] ^ self._masks).ravel().astype(np.int64)
        starts, numbers = begins[keys], begins[keys + 1] - begins[keys]
        ends = np.cumsum(numbers)
        cuts = np.searchsorted(ends, np.arange(_AT_ONCE, ends[-1], _AT_ONCE))
        for low, high in pairwise([0, *cuts.tolist(), len(keys)]):
            some = numbers[low:high]
            within = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
            rows = np.repeat(np.arange(low, high) // len(self._masks), some)
            yield rows, order[np.repeat(starts[low:high], some) + within]


def _sorted(quarters: npt.NDArray[np.uint16]) -> tuple[_Numbers, _Numbers]:
    """(where those of each quarter begin, their places in that order)."""
    begins = np.zeros((1 << _BITS) + 1, np.int64)
    np.cumsum(np.bincount(quarters, minlength=1 << _BITS), out=begins[1:])
    return begins, np.argsort(quarters, kind="stable")


def _quarter(bits: _Bits, which: int) -> npt.NDArray[np.uint16]:
    return (bits >> np.uint64(_BITS * which)).astype(np.uint16)


def _masks(wrong: int) -> Iterator[int]:
    """All ways in which up to so many bits of a quarter may be wrong."""
    for number in range(wrong + 1):
        for places in combinations(range(_BITS), number):
            yield sum(1 << place for place in places)


_ONES = np.array([quarter.bit_count() for quarter in range(1 << _BITS)], np.uint8)


def _ones(bits: _Bits) -> npt.NDArray[np.uint8]:
    """How many bits are set in each."""
    first, *others = (_ONES[_quarter(bits, which)] for which in range(_QUARTERS))
    return sum(others, first)


def _same_colours(cells: _Cells, numbers: int | _Numbers, entries: _Numbers) -> npt.NDArray[np.bool_]:
    """(c,) whether pictures have the colours of the entries."""
    others, turned = cells[entries >> 1].astype(np.int16), entries & 1 == 1
    others[turned] = others[turned, :, ::-1]
    alike: npt.NDArray[np.bool_] = (np.abs(others - cells[numbers]) <= _SAME_COLOURS).all(axis=(1, 2, 3))
    return alike


def _ranks(distances: npt.NDArray[np.uint8], entries: _Numbers) -> _Numbers:
    return (distances.astype(np.int64) << 1 | entries & 1) << _NUMBER_BITS | entries >> 1


def _near_copy(rank: int) -> NearCopy | None:
    if rank == _NOTHING:
        return None
    kind, number = divmod(rank, 1 << _NUMBER_BITS)
    return NearCopy(number, kind >> 1, bool(kind & 1))
