"""Captions that vary from visit to visit: one of several, its tags in another order, some of them left out.

What is shown is a function of (seed, picture, visit). So that captions can be encoded once, chance chooses for each
visit one of a few variants of the picture's captions, and each variant is a function of (seed, picture, its number).
"""

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from finetune.data.example import Example
from finetune.data.text.captions import mentions
from finetune.diffusion.chance import choice
from finetune.recipe import Data

SEPARATOR = ", "
_COMMA = re.compile(r"(?<!\d),|,(?!\d)")
"""1,000 is one word"""


class TagEdits(NamedTuple):
    """What is done to the tags of captions, the parts between commas."""

    shuffle: bool = False
    keep: int = 0
    """so many of the first ones stay as they are, and so does the one with the trigger"""
    dropout: float = 0.0
    """share of the others that is left out"""
    variants: int = 16
    """different texts of a picture, at most"""
    trigger: str | None = None

    @classmethod
    def of(cls, data: Data) -> "TagEdits":
        return cls(data.shuffle_tags, data.keep_tags, data.tag_dropout, data.caption_variants, data.trigger)

    @property
    def active(self) -> bool:
        return self.shuffle or self.dropout > 0


def tags_of(caption: str) -> list[str]:
    return [tag for part in _COMMA.split(caption) if (tag := part.strip())]


def fixed_tags(tags: list[str], edits: TagEdits) -> set[int]:
    """Places of the tags that are neither moved nor left out."""
    own = next((place for place, tag in enumerate(tags) if mentions(tag, edits.trigger)), None)
    return {*range(min(edits.keep, len(tags))), *([] if own is None else [own])}


def changeable(caption: str, edits: TagEdits) -> bool:
    """Whether anything of this caption can be moved or left out."""
    tags = tags_of(caption)
    free = len(tags) - len(fixed_tags(tags, edits))
    return (edits.shuffle and free > 1) or (edits.dropout > 0 and free > 0 and len(tags) > 1)


def edited(caption: str, edits: TagEdits, chance: random.Random) -> str:
    """The caption with its free tags shuffled among their places, and each left out by chance; never without any tag,
    as an empty caption is what `caption_dropout` is for. A caption of which nothing can change stays as it is."""
    if not changeable(caption, edits):
        return caption
    tags = tags_of(caption)
    fixed = fixed_tags(tags, edits)
    free = [place for place in range(len(tags)) if place not in fixed]
    order = chance.sample(free, len(free)) if edits.shuffle else free
    dropped = {place for place in free if chance.random() < edits.dropout}
    moved = dict(zip(free, order, strict=True))
    kept = [tags[moved.get(place, place)] for place in range(len(tags)) if moved.get(place, place) not in dropped]
    return SEPARATOR.join(kept or [tags[order[0]]])


def shown_caption(example: Example, edits: TagEdits, seed: int, visit: int) -> str:
    """The caption of the visit-th look at a picture, from 0."""
    some = _captions(example)
    if edits.active:
        return variant(example, edits, seed, _drawn(example, edits, seed, visit))
    return some[0] if len(some) == 1 else choice(seed, example.name, visit, "wording").choice(some)


def shown_captions(example: Example, edits: TagEdits, seed: int, visits: int) -> set[str]:
    """All captions of so many visits."""
    if not edits.active:
        return {shown_caption(example, edits, seed, visit) for visit in range(visits)}
    numbers = {_drawn(example, edits, seed, visit) for visit in range(visits)}
    return {variant(example, edits, seed, number) for number in numbers}


def variant(example: Example, edits: TagEdits, seed: int, number: int) -> str:
    """The number-th variant of the picture's captions, which take turns."""
    return _variant(example.name, _captions(example), edits, seed, number)


@lru_cache(4096)
def _variant(name: str, captions: tuple[str, ...], edits: TagEdits, seed: int, number: int) -> str:
    """Kept, as looks are listed picture by picture, and each variant is shown many times."""
    return edited(captions[number % len(captions)], edits, choice(seed, name, number, "tags"))


def variant_count(example: Example, edits: TagEdits) -> int:
    """`edits.variants`, made up to whole turns of the picture's captions."""
    turns = len(_captions(example))
    return -(-edits.variants // turns) * turns


def without_effect(examples: Sequence[Example], edits: TagEdits) -> str:
    """A sentence where edits are asked for and change no caption; "" else."""
    if not edits.active or any(changeable(caption, edits) for e in examples for caption in _captions(e)):
        return ""
    asked = " and ".join(["data.shuffle_tags"] * edits.shuffle + ["data.tag_dropout"] * (edits.dropout > 0))
    kept = f" and the first {edits.keep}" if edits.keep else ""
    return f"{asked} has no effect: no caption has tags (parts between commas) beside the trigger's{kept} to change"


def _drawn(example: Example, edits: TagEdits, seed: int, visit: int) -> int:
    return choice(seed, example.name, visit, "variant").randrange(variant_count(example, edits))


def _captions(example: Example) -> tuple[str, ...]:
    return example.wordings or (example.caption,)
