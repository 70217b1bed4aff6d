"""What a masker is, and which of its answers are no masks: empty and whole ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from finetune.data.masks import covered_share, fault_of

LEAST, MOST = 0.002, 0.99
"""shares of a picture that its mask may cover"""


class MadeMask(NamedTuple):
    """What a masker makes of a picture: a mask in mode L, white where it is learnt, or why there is none."""

    grey: Image.Image | None
    problem: str = ""


class Masker(Protocol):
    """A masker is called with a few picture files, and answers in their order."""

    @property
    def batch(self) -> int:
        """How many pictures at a time."""

    def check(self) -> None:
        """Looks whether it can run at all, before the first mask is written.

        Raises:
            FinetuneError: it cannot.
        """

    def __call__(self, files: Sequence[Path]) -> list[MadeMask]: ...


def screened_mask(made: MadeMask) -> MadeMask:
    """With its problem, where it is no mask."""
    if made.problem or made.grey is None:
        return made
    problem = _fault(made.grey)
    return MadeMask(None if problem else made.grey, problem)


def _fault(grey: Image.Image) -> str:
    share = covered_share(grey)
    if fault_of(grey) == "empty":
        return "empty: nothing was found"
    if share < LEAST:
        return f"less than {LEAST:.1%} of the picture: crop it closer"
    return "whole: nothing was left out" if share > MOST else ""
