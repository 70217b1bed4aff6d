"""Views of a picture: an object on one plain ground is looked at closely, and on other grounds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.images.colours import Colour

SIDE_PX = 512
"""of the picture that is cut: the eyes see less"""
GROUND_TOLERANCE = 24
"""by which a pixel may differ from the ground in any channel, of 255"""
PLAIN = 0.8
"""share of the border that must be of one colour"""
CLOSE = (0.65, 0.75)
"""longest side of the object in close views, in shares of the picture's side"""
LAID = 0.7
"""the same on other grounds"""

_Pixels = npt.NDArray[np.float32]


class View(NamedTuple):
    """A picture to look at, and the ground that is known to be behind; empty: the picture's own."""

    picture: Image.Image
    ground: str = ""


class Cutout(NamedTuple):
    """An object and what is behind it."""

    pixels: _Pixels
    """(h, w, 3), 0..255"""
    cover: _Pixels
    """(h, w, 1), 0..1"""
    ground: _Pixels
    """(3,)"""

    def laid(self, share: float, colour: Colour | None = None) -> Image.Image:
        """On a square of its own ground, or of another, its longest side `share` of the square's."""
        ground = self.ground if colour is None else np.asarray(colour, np.float32)
        height, width = self.pixels.shape[:2]
        side = max(8, round(max(height, width) / share))
        square = np.broadcast_to(ground, (side, side, 3)).copy()
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = self.pixels + (1 - self.cover) * (ground - self.ground)
        return Image.fromarray(square.round().clip(0, 255).astype(np.uint8))


def views_of(picture: Image.Image, grounds: Mapping[str, Colour]) -> Sequence[View]:
    """The picture as it is, where grounds are not asked for or its own is not plain; else close views of the object."""
    found = cut(picture) if grounds else None
    if found is None:
        return [View(picture)]
    close = [View(found.laid(share)) for share in CLOSE]
    return [*close, *(View(found.laid(LAID, colour), name) for name, colour in grounds.items())]


def cut(picture: Image.Image) -> Cutout | None:
    """The object of a picture with a plain ground; None where there is no such ground, or nothing on it."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX))
    pixels = np.asarray(small, dtype=np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0).astype(np.float32)
    if (np.abs(border - ground).max(1) <= GROUND_TOLERANCE).mean() < PLAIN:
        return None
    away = np.abs(pixels - ground).max(2)
    rows, columns = ((away > GROUND_TOLERANCE).any(axis).nonzero()[0] for axis in (1, 0))
    if not len(rows):
        return None
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cover = np.clip(away[window] / (2 * GROUND_TOLERANCE), 0, 1)[..., None]
    return Cutout(pixels[window], cover, ground)
