"""How often an epoch shows each picture, from the weights that pictures have: whole numbers in just their ratios."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from finetune.errors import DataError

SMALL = 20
"""times at most that an epoch shows the picture of the smallest weight"""
SIMPLER = 12
"""A weight that is not written in few digits is taken for a fraction with a denominator up to this,"""
NEAR = Fraction(1, 200)
"""if it is that near to it."""
MOST_SHOWN = 2_000_000
"""pictures, with their repeats, in an epoch"""


class Repeats(NamedTuple):
    counts: tuple[int, ...]
    """of each picture, how often an epoch shows it; empty: each once"""
    notices: tuple[str, ...] = ()
    """how the weights were understood, where that is not as they are written"""


class WeightShare(NamedTuple):
    """The pictures of one weight."""

    weight: float
    images: int
    repeats: int
    """how often an epoch shows each of them"""


def repeats_of(weights: Sequence[float]) -> Repeats:
    """The smallest whole numbers that have the ratios of the weights.

    Raises:
        DataError: only very large numbers have them.
    """
    different = sorted(set(weights))
    if len(different) < 2:
        said = f"every picture has the weight {different[0]:g}" if different else ""
        return Repeats((), () if different in ([], [1]) else (f"{said}, which has no effect: only ratios count",))
    exact = {weight: Fraction(repr(weight)) for weight in different}
    counts, notices = _whole(exact), tuple[str, ...]()
    if counts[different[0]] > SMALL:
        near = {weight: _simpler(one) for weight, one in exact.items()}
        counts, notices = _whole(near), _understood(exact, near)
    of = Counter(weights)
    shown = sum(counts[weight] * number for weight, number in of.items())
    if counts[different[0]] > SMALL or shown > MOST_SHOWN:
        raise DataError(_absurd(different, counts, shown), "write weights in a simple ratio, such as 1, 2 and 5")
    return Repeats(tuple(counts[weight] for weight in weights), notices)


def shares(weights: Sequence[float], counts: Sequence[int]) -> list[WeightShare]:
    """The pictures by weight, the largest first; empty where each is shown once."""
    by = Counter(zip(weights, counts, strict=True)) if counts else Counter[tuple[float, int]]()
    return [WeightShare(weight, images, repeats) for (weight, repeats), images in sorted(by.items(), reverse=True)]


def _whole(fractions: dict[float, Fraction]) -> dict[float, int]:
    over = math.lcm(*(one.denominator for one in fractions.values()))
    whole = {weight: int(one * over) for weight, one in fractions.items()}
    common = math.gcd(*whole.values())
    return {weight: number // common for weight, number in whole.items()}


def _simpler(exact: Fraction) -> Fraction:
    near = exact.limit_denominator(SIMPLER)
    return near if abs(near - exact) <= NEAR * exact else exact


def _understood(exact: dict[float, Fraction], near: dict[float, Fraction]) -> tuple[str, ...]:
    changed = [f"{weight:g} as {near[weight]}" for weight in exact if near[weight] != exact[weight]]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (f"weights are rounded to a simple ratio: {', '.join(changed[:3])}{more}",) if changed else ()


def _absurd(different: Sequence[float], counts: dict[float, int], shown: int) -> str:
    least = counts[different[0]]
    if least > SMALL:
        ratio = (
            f"an epoch would show the picture of the smallest weight {least:,} times, and at most {SMALL} are allowed"
        )
    else:
        ratio = f"an epoch would show {shown:,} pictures, and at most {MOST_SHOWN:,} are allowed"
    named = ", ".join(f"{one:g}" for one in (*different[:2], *different[2:][-1:]))
    return f"no small whole numbers have the ratio of the weights {named}: {ratio}"
