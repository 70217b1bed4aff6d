"""What the scores of generated pictures mean, in plain words: for the screen, and for a run's page."""

import math
from typing import NamedTuple

from finetune.evaluation.verdict import LIMITS


class ScoreMeaning(NamedTuple):
    """Of a score."""

    scale: str
    """what its ends are, in a few words"""
    sentence: str
    """what it tells a person who never trained a model"""


HELD_OUT = "held_out_"
"""how scores of held-out pictures are called, with the share of the noise path behind it"""
MEANINGS = {
    "likeness": ScoreMeaning(
        "0: as the base's pictures, 1: as the training pictures are to each other",
        "How much the pictures look like yours. 0 is what the base made before training, 1 is as alike as your own "
        "pictures are to each other.",
    ),
    "prompt": ScoreMeaning(
        "share that shows what was asked for",
        "In what share of the pictures the rest of the prompt is there, too, such as the setting. 1 is in all of them.",
    ),
    "drift": ScoreMeaning(
        "without the trigger: 0 unchanged, 1 other pictures",
        "How much pictures have changed whose prompt does not ask for it. 0 is not at all, and best; 1 is as much as "
        "if something else had been asked for.",
    ),
    "diversity": ScoreMeaning(
        "1: as unlike as the training pictures",
        "How different the pictures are from one another. 1 is as different as your own; near 0 all look the same.",
    ),
    "memorisation": ScoreMeaning(
        "0: no copies, 1: copies of training pictures",
        "Whether training pictures are copied. 0 is not at all, and best; 1 is that pictures are copies.",
    ),
}
_HELD_OUT = ScoreMeaning(
    "loss on held-out pictures; 1: as the base's",
    "How well pictures of yours are predicted that were not trained on, at one level of noise. Below 1 is better than "
    "the base, above 1 is worse.",
)


def meaning(score: str) -> ScoreMeaning:
    """Of a score by its name; one of held-out pictures names its share of the noise path."""
    return MEANINGS.get(score, _HELD_OUT)


class _Mark(NamedTuple):
    """A word for values from here on, or where less is better up to here."""

    limit: float
    word: str
    tone: str


_MARKS = {
    "likeness": (
        _Mark(LIMITS.alike, "Very alike", "good"), _Mark(LIMITS.product, "Alike", "good"),
        _Mark(0.2, "A little alike", "wait"), _Mark(-math.inf, "Not alike", "bad"),
    ),
    "prompt": (
        _Mark(LIMITS.surely, "Followed", "good"), _Mark(LIMITS.followed, "Mostly followed", "good"),
        _Mark(-math.inf, "Often ignored", "wait"),
    ),
    "diversity": (_Mark(0.5, "Varied", "good"), _Mark(-math.inf, "Much the same", "wait")),
    "drift": (
        _Mark(LIMITS.unchanged, "Unchanged", "good"), _Mark(LIMITS.broken, "Changed a little", "wait"),
        _Mark(math.inf, "Changed much", "bad"),
    ),
    "memorisation": (_Mark(LIMITS.copied, "No copies", "good"), _Mark(math.inf, "Copies", "bad")),
}  # fmt: skip
_LOSSES = (_Mark(1.0, "Better than the base", "good"), _Mark(math.inf, "Worse than the base", "wait"))
_LESS_IS_BETTER = ("drift", "memorisation")


def reading(score: str, value: float) -> tuple[str, str]:
    """(what a value says in a word or two, and whether that is "good", "wait" or "bad"), by the verdict's limits."""
    marks, less = _MARKS.get(score, _LOSSES), score not in _MARKS or score in _LESS_IS_BETTER
    found = next(mark for mark in marks if (value <= mark.limit if less else value >= mark.limit))
    return found.word, found.tone
