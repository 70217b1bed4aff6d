"""What the scores of generated pictures mean, in plain words: for the screen, and for a run's page."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """Of a score."""

    scale: str
    """what its ends are, in a few words"""
    sentence: str
    """what it tells a person who never trained a model"""


MEANINGS = {
    "likeness": Meaning(
        "0: as the base's pictures, 1: as the training pictures are to each other",
        "How much the pictures look like yours. 0 is what the base made before training, 1 is as alike as your own "
        "pictures are to each other.",
    ),
    "prompt": Meaning(
        "share that shows what was asked for",
        "In what share of the pictures the rest of the prompt is there, too, such as the setting. 1 is in all of them.",
    ),
    "drift": Meaning(
        "without the trigger: 0 unchanged, 1 other pictures",
        "How much pictures have changed whose prompt does not ask for it. 0 is not at all, and best; 1 is as much as "
        "if something else had been asked for.",
    ),
    "diversity": Meaning(
        "1: as unlike as the training pictures",
        "How different the pictures are from one another. 1 is as different as your own; near 0 all look the same.",
    ),
    "memorisation": Meaning(
        "0: no copies, 1: copies of training pictures",
        "Whether training pictures are copied. 0 is not at all, and best; 1 is that pictures are copies.",
    ),
}
_HELD_OUT = Meaning(
    "loss on held-out pictures; 1: as the base's",
    "How well pictures of yours are predicted that were not trained on, at one level of noise. Below 1 is better than "
    "the base, above 1 is worse.",
)


def meaning(score: str) -> Meaning:
    """Of a score by its name; one of held-out pictures names its share of the noise path."""
    return MEANINGS.get(score, _HELD_OUT)
