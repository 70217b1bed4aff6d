"""Masks without a model: what a flat background, that reaches the borders of the picture, does not cover."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.images import decode
from finetune.masking.masker import MadeMask

LOOKED_PX = 384
"""the longer side at which a picture is looked at"""
NEAR_LEVELS = 30.0
"""how far a colour of the background may be from the usual one at the border, of 441 from black to white"""
FLAT = 0.75
"""the share of the border that must be of one colour"""
Flags = npt.NDArray[np.bool_]


class Background:
    """Cuts a subject out of a background of one colour. What the background does not reach from the border, such as
    what is seen through a handle, is taken for the subject."""

    batch = 1

    def check(self) -> None:
        """It needs nothing."""

    def __call__(self, files: Sequence[Path]) -> list[MadeMask]:
        return [cut_out(decode.open_rgb(file)) for file in files]


def cut_out(picture: Image.Image) -> MadeMask:
    """The mask of what is not background, in the picture's size."""
    seen = picture.copy()
    seen.thumbnail((LOOKED_PX, LOOKED_PX), Image.Resampling.BOX)
    pixels = np.asarray(seen, np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    near = np.linalg.norm(pixels - np.median(edge, axis=0), axis=2) <= NEAR_LEVELS
    border = np.concatenate([near[0], near[-1], near[:, 0], near[:, -1]])
    if border.mean() < FLAT:
        return MadeMask(None, "the background is not of one colour")
    subject = ~_reached(near)
    grey = Image.fromarray(np.asarray(255 * subject, np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    return MadeMask(grey.point(lambda value: 255 if value > 127 else 0))


def _reached(near: Flags) -> Flags:
    """Of the flagged pixels those that are joined to a flagged one at the border, side by side."""
    reached = np.zeros_like(near)
    reached[[0, -1]], reached[:, [0, -1]] = near[[0, -1]], near[:, [0, -1]]
    while True:
        grown = reached.copy()
        for rows, flags in ((grown, near), (grown.T, near.T)):
            _spread(rows, flags)
            _spread(rows[:, ::-1], flags[:, ::-1])
        if np.array_equal(grown, reached):
            return reached
        reached = grown


def _spread(reached: Flags, near: Flags) -> None:
    """To the right, along each row, as far as pixels are flagged."""
    for column in range(1, reached.shape[1]):
        reached[:, column] |= reached[:, column - 1] & near[:, column]
