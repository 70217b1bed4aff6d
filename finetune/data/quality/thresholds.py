"""From where on the audit of a dataset says something: each may be set by the person who asks."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune.errors import InputError


class AuditThresholds(NamedTuple):
    """What is usual. `THRESHOLD_LIMITS` says what each may be."""

    similar: float = 10
    blurred: float = 2.5
    upscaled: float = 2.0
    border: float = 0.02
    background: float = 0.9
    cast: float = 0.5
    fused: float = 1.0


class Limit(NamedTuple):
    least: float
    most: float
    meaning: str


THRESHOLD_LIMITS = {
    "similar": Limit(0, 11, "largest difference of near-duplicates, in bits of a 64-bit perceptual hash"),
    "blurred": Limit(1.5, 32, "times softer than a sharp image at the training size"),
    "upscaled": Limit(1.2, 32, "times larger than the detail in the image"),
    "border": Limit(0.002, 0.45, "share of a side that a plain border covers"),
    "background": Limit(0.5, 1, "share of the images with the same background"),
    "cast": Limit(0.1, 4, "octaves between the colour channels, even in the greyest parts"),
    "fused": Limit(0.5, 1, "share of the captions with the same word"),
}
USUAL_THRESHOLDS = AuditThresholds()


def read_thresholds(given: Sequence[str]) -> AuditThresholds:
    """Of texts such as "similar=6".

    Raises:
        InputError: one is no such text, or is given twice.
    """
    written: dict[str, str] = {}
    for text in given:
        name, _, number = (part.strip() for part in text.partition("="))
        if name in written:
            raise InputError(f"`threshold` {name} is given twice", "give it once")
        written[name] = number
    return thresholds_of(written)


def thresholds_of(given: Mapping[str, str | float]) -> AuditThresholds:
    """By name.

    Raises:
        InputError: there is no such threshold, or it is out of its bounds.
    """
    if strangers := [name for name in given if name not in THRESHOLD_LIMITS]:
        raise InputError(
            f"there is no `threshold` {strangers[0]!r}", f"one of {', '.join(THRESHOLD_LIMITS)}, as in similar=6"
        )
    return USUAL_THRESHOLDS._replace(**{name: _number(name, written) for name, written in given.items()})


def _number(name: str, written: str | float) -> float:
    least, most, meaning = THRESHOLD_LIMITS[name]
    try:
        number = float(written)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        raise InputError(
            f"`threshold` {name}={written} must be a number from {least:g} to {most:g}: {meaning}",
            f"{name}={getattr(USUAL_THRESHOLDS, name):g} is the default",
        )
    return number
