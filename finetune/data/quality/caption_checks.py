"""What speaks against captions that a dataset has: a check is a function of examples and words that gives sentences."""

from collections.abc import Sequence

from finetune.data.example import Example
from finetune.data.text.wording import CaptionWords

FEW = 3
"""Pictures from which on equal captions are worth a word."""


def remarks(examples: Sequence[Example], words: CaptionWords) -> list[str]:
    """The sentences of all checks, for whoever checks, plans or trains."""
    return [sentence for check in (equal, few) if (sentence := check(examples, words))]


def equal(examples: Sequence[Example], words: CaptionWords) -> str:
    """One written caption for all pictures: what they do not tell apart becomes part of the product."""
    captions = {e.caption for e in examples}
    if len(examples) < FEW or len(captions) > 1 or any(len(e.wordings) > 1 for e in examples) or captions == {""}:
        return ""
    subject = f"{words.trigger!r}" if words.trigger else "every prompt"
    return (
        f"all {len(examples)} captions are {examples[0].caption!r}: what differs from picture to picture (background, "
        f"view) is learnt as part of {subject}; say it in the captions"
    )


def few(examples: Sequence[Example], words: CaptionWords) -> str:
    """A style whose captions repeat: its objects are told apart by chance only."""
    different = len({e.caption for e in examples})
    if words.shown != "style" or different < 2 or 2 * different >= len(examples):
        return ""
    return (
        f"only {different} different captions for {len(examples)} pictures of a style: name in each caption what its "
        "picture shows"
    )
