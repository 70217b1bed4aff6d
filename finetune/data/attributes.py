"""What is known of a picture beside its first caption, as the columns of metadata.jsonl have it."""

import math
from collections.abc import Mapping
from typing import NamedTuple

LARGEST_WEIGHT = 1000.0


class Attributes(NamedTuple):
    """Each of these is kept with the picture from the source to training."""

    captions: tuple[str, ...] = ()
    """Further captions, which are shown by turns with the first."""
    weight: float = 1.0
    """How often it is seen, relative to the others."""
    held_out: bool = False
    """It is held out of training, for the validation loss."""
    mask: str = ""
    """The posix path of its mask, relative to the dataset's root; empty without one."""
    license: str = ""
    """SPDX identifier, where the source has one."""
    author: str = ""
    source: str = ""
    """Where it comes from: an address, a catalogue's number."""
    consent: str = ""
    """Of the people or brands in it: who gave it, or where it is filed."""


NO_ATTRIBUTES = Attributes()
TRAINED, HELD_OUT_SPLITS = ("train", "training"), ("validation", "valid", "val", "dev", "eval", "test")
"""What a column `split` may say"""
TEXTS = ("license", "author", "source", "consent")
OTHER_NAMES = {
    "license": ("licence", "license_name", "license_url"),
    "author": ("artist", "creator", "photographer"),
    "source": ("source_url",),
    "consent": ("model_release",),
}
"""A column -> what it is called elsewhere, where it is not there."""
ATTRIBUTE_COLUMNS = (
    "captions", "weight", "split", "mask_file_name", *TEXTS, *(other for some in OTHER_NAMES.values() for other in some)
)  # fmt: skip
"""All that `read_attributes` reads"""


_CAPTIONED = frozenset(("file_name", "text", "caption", "caption_by"))
"""columns of which nothing is read here"""


def read_attributes(cells: Mapping[str, object]) -> Attributes:
    """The attributes in a row of a table, whose other columns are passed over.

    Raises:
        ValueError: a column holds what cannot be one of its values; says which and what it may hold.
    """
    if _CAPTIONED.issuperset(cells):
        return NO_ATTRIBUTES
    captions, weight, split = cells.get("captions"), cells.get("weight"), cells.get("split")
    if captions in (None, ""):
        captions = []
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise ValueError("`captions` must be a list of texts")
    if split not in (None, "", *TRAINED, *HELD_OUT_SPLITS):
        raise ValueError("`split` must be train or validation")
    told: dict[str, str] = {}
    for name in (*TEXTS, "mask_file_name"):
        value = next((cell for key in (name, *OTHER_NAMES.get(name, ())) if (cell := cells.get(key)) is not None), None)
        if not isinstance(value, str | None):
            raise ValueError(f"`{name}` must be a text")
        told[name] = (value or "").strip()
    mask = told.pop("mask_file_name")
    return Attributes(tuple(captions), _weight(weight), split in HELD_OUT_SPLITS, mask, **told)


def cells_of(attributes: Attributes) -> dict[str, object]:
    """The columns that `read_attributes` reads; none for what is as usual."""
    named = {"captions": list(attributes.captions), "mask_file_name": attributes.mask} | {
        n: getattr(attributes, n) for n in TEXTS
    }
    cells = {name: value for name, value in named.items() if value}
    if attributes.weight != 1.0:
        cells["weight"] = attributes.weight
    if attributes.held_out:
        cells["split"] = "validation"
    return cells


def _weight(written: object) -> float:
    if written in (None, ""):
        return 1.0
    try:
        weight = float(written) if isinstance(written, str | int | float) and not isinstance(written, bool) else 0.0
    except (ValueError, OverflowError):
        weight = 0.0
    if not (math.isfinite(weight) and 0 < weight <= LARGEST_WEIGHT):
        raise ValueError(f"`weight` must be a number above 0, up to {LARGEST_WEIGHT:g}")
    return weight
