"""Masks without a model: what a flat background, that reaches the borders of the picture, does not cover."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from finetune.data.images import decode
from finetune.masking.masker import MadeMask

LOOKED_PX = 384
"""the longer side at which a picture is looked at"""
NEAR_LEVELS = 30.0
"""how far a colour of the background may be from the usual one at the border, of 441 from black to white"""
FLAT = 0.75
"""the share of the border that must be of one colour"""
SOLID_PX = 3
"""of the picture as it is looked at: what is nowhere so thick, and touches nothing that is, is dust"""
FRAME, FILLED = 0.03, 0.97
"""shares of a side that a thin frame takes, at most, and of what is inside of it that would be the subject"""
Flags = npt.NDArray[np.bool_]


class Background:
    """Cuts a subject out of a background of one colour. What the background does not reach from the border, such as
    what is seen through a handle, is taken for the subject, and so is a shadow; dust is not."""

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
    at_border = np.zeros_like(near)
    at_border[[0, -1]], at_border[:, [0, -1]] = near[[0, -1]], near[:, [0, -1]]
    subject = _without_dust(~_reached(at_border, near))
    if _is_framed(subject):
        return MadeMask(None, "only a thin frame around it is of one colour: crop that away")
    grey = _grey(subject).resize(picture.size, Image.Resampling.BILINEAR)
    return MadeMask(grey.point(lambda value: 255 if value > 127 else 0))


def _without_dust(subject: Flags) -> Flags:
    """What is joined to something solid; all of it, where nothing is."""
    solid = np.asarray(_grey(subject).filter(ImageFilter.MinFilter(SOLID_PX))) > 0
    return _reached(solid, subject) if solid.any() else subject


def _is_framed(subject: Flags) -> bool:
    """Whether it fills the picture but for a frame."""
    left, top, right, bottom = _grey(subject).getbbox() or (0, 0, 0, 0)
    height, width = subject.shape
    margins = (left / width, 1 - right / width, top / height, 1 - bottom / height)
    return max(margins) <= FRAME and float(subject[top:bottom, left:right].mean()) >= FILLED


def _grey(flags: Flags) -> Image.Image:
    return Image.fromarray(np.asarray(255 * flags, np.uint8))


def _reached(some: Flags, near: Flags) -> Flags:
    """Of the flagged pixels those that are joined to some of them, side by side."""
    reached = some
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
