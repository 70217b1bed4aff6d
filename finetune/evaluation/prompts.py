"""Which prompts a verdict is painted from: with the trigger, of what the captions do not show; and without it."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from finetune.data.example import Dataset
from finetune.data.text import captions
from finetune.data.text.prompts import expand, with_article

_SEED, _SEED_WITHOUT = 20_000, 30_000
"""of the first picture with the trigger, and without; each further one adds 1, so that more of them change no others"""
_FEWEST, _SHARE_WITHOUT = 3, 0.6
"""pictures without the trigger: at least so many, and so many for each with it"""

_COLOURS = "purple teal brown black red orange yellow green blue pink white gray".split()
_POCKET_OBJECTS = (
    "car", "banana", "cat face", "strawberry", "camera", "guitar", "penguin", "cactus", "castle", "butterfly", "donut",
    "umbrella", "robot", "owl", "sneaker", "pumpkin", "key", "whale", "train", "clover",
)  # fmt: skip
_SETTINGS = (
    "on a beach", "in the snow", "on a wooden table", "on a city street", "in a forest", "on a white background",
    "in a kitchen", "on a red carpet", "on a rock by the sea", "in front of a brick wall", "on a marble counter",
    "in a meadow of flowers", "on a bed", "in a museum", "on green grass", "in the desert",
)  # fmt: skip
_OBJECTS = (
    "bicycle", "lighthouse", "cat", "teapot", "tree", "house", "car", "apple", "guitar", "chair", "fish", "clock",
    "bridge", "dog", "flower", "boat", "mountain", "lamp", "horse", "shoe",
)  # fmt: skip
Aim = Literal["product", "style"]


class Asked(NamedTuple):
    """A picture to paint, and what it should show in words that a judge knows."""

    prompt: str
    seed: int
    caption: str


class PromptSet(NamedTuple):
    aim: Aim
    with_trigger: tuple[Asked, ...]
    without: tuple[Asked, ...]


def prompt_set(data: Dataset, pocket: bool, count: int, written: Sequence[str] = ()) -> PromptSet:
    """What to paint for a dataset, the same whenever it is asked.

    pocket: in the world of the pocket base (icons, colours of backgrounds), else in photos' (settings, objects). count:
    pictures with the trigger; prompts are taken by turns, each time at another seed. written: the user's prompts in
    place of ours; those without the trigger are the ones that should not change.
    """
    aim, said = aim_of(data), [e.caption for e in data.examples]
    named = [expand(one, data.trigger, data.class_word) for one in written]
    calling = [one for one in named if data.trigger is None or captions.mentions(one, data.trigger)]
    other = [one for one in named if one not in calling]
    calling = calling or _with_trigger(data, aim, said, pocket)
    other = other or _without_trigger(data, aim, said, pocket)
    return PromptSet(aim, _asked(calling, count, _SEED, data), _asked(other, _without(count), _SEED_WITHOUT, data))


def pictures_for(count: int) -> int:
    """All that are painted for so many with the trigger: those without it as well, and both from the base, too."""
    return 2 * (count + _without(count))


def _without(count: int) -> int:
    return max(_FEWEST, round(count * _SHARE_WITHOUT))


def aim_of(data: Dataset) -> Aim:
    """What its card says; else what most captions speak of."""
    if data.kind:
        return data.kind
    styled = [bool(re.search(r"\bstyle\b", e.caption, re.IGNORECASE)) for e in data.examples]
    return "style" if sum(styled) * 2 > len(styled) else "product"


def _with_trigger(data: Dataset, aim: Aim, said: Sequence[str], pocket: bool) -> list[str]:
    if data.trigger is None:
        return list(dict.fromkeys(said))
    if aim == "style":
        objects = _unsaid(_POCKET_OBJECTS if pocket else _OBJECTS, said)
        return [f"{with_article(name)}, {data.trigger} style" for name in objects]
    words = data.class_word or ""
    subject = with_article(data.trigger if words and words in data.trigger else f"{data.trigger} {words}".strip())
    return [f"{subject} {place}" for place in _places(said, pocket)]


def _without_trigger(data: Dataset, aim: Aim, said: Sequence[str], pocket: bool) -> list[str]:
    objects = _unsaid(_POCKET_OBJECTS if pocket else _OBJECTS, [*said, data.class_word or ""])
    places = _places((), pocket)
    others = [f"{with_article(name)} {places[(5 * i + 3) % len(places)]}" for i, name in enumerate(reversed(objects))]
    # its own class first: that is what changes when a product takes the whole class with it
    return [f"{with_article(data.class_word)} {places[4]}", *others] if aim == "product" and data.class_word else others


def _places(said: Sequence[str], pocket: bool) -> list[str]:
    if pocket:
        return [f"on {with_article(colour)} background" for colour in _unsaid(_COLOURS, said)]
    nouns = {place.split()[-1]: place for place in _SETTINGS}
    return [nouns[noun] for noun in _unsaid(list(nouns), said)]


def _unsaid(words: Sequence[str], said: Sequence[str]) -> list[str]:
    """Those that no caption has; all of them when the captions have nearly all."""
    left = [word for word in words if not any(captions.mentions(caption, word) for caption in said)]
    return left if len(left) > 2 else list(words)


def _asked(prompts: Sequence[str], count: int, seed: int, data: Dataset) -> tuple[Asked, ...]:
    shown = [prompts[i % len(prompts)] for i in range(count)]
    return tuple(Asked(one, seed + i, bare_caption(one, data)) for i, one in enumerate(shown))


def bare_caption(prompt: str, data: Dataset) -> str:
    """Without the trigger: what the picture should show, in words that everybody knows."""
    bare = captions.without_trigger(prompt, data.trigger, data.class_word)
    return re.sub(r",? *(?:in )?style$", "", bare).strip(" ,")
