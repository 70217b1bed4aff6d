"""Plain borders around a picture: the bars of a letterbox, and frames. A product on a plain ground has none."""

from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

Box = tuple[int, int, int, int]
"""left, top, right, bottom in px"""
_PLAIN = 16
"""levels by which a border may differ from its own colour"""
_FUZZY = 48
"""levels by which the last line of a border may, which JPEG blurs into the picture"""
_DEEP = 0.15
"""the share of a side, behind a bar, in which the picture must reach across"""
_ACROSS = 0.9
"""the share of the other side that it must reach across"""
_WIDEST_BAR, _WIDEST_FRAME = 0.45, 0.12
"""shares of a side, at each end; a picture with wider margins all around may be a square thing on a plain ground"""

_Pixels = npt.NDArray[np.int16]


def content_box(image: Image.Image, small: Image.Image) -> Box:
    """What lies within the borders, exact to the px. small: the same picture, smaller."""
    whole = (0, 0, *image.size)
    across, down = _plain_pair(image, 0), _plain_pair(image, 1)
    if not (across or down):
        return whole
    pixels = np.asarray(small, np.int16)
    left, right = _bars(pixels.transpose(1, 0, 2)) if across else (0, 0)
    top, bottom = _bars(pixels) if down else (0, 0)
    height, width, _ = pixels.shape
    inner = pixels[top : height - bottom, left : width - right]
    framed = bool(top and bottom and left and right)
    if framed and max(left / width, right / width, top / height, bottom / height) > _WIDEST_FRAME:
        return whole
    colour = pixels[0, 0]
    if (top or bottom) and not _reaches(inner, colour):
        return whole
    if (left or right) and not _reaches(inner.transpose(1, 0, 2), colour):
        return whole
    return _exact(image, small, (left, top, width - right, height - bottom))


def _plain_pair(image: Image.Image, axis: int) -> bool:
    """Whether both outermost lines are plain, and of one colour. axis: 0 for columns, 1 for rows."""
    width, height = image.size
    first, last = (
        ((0, 0, 1, height), (width - 1, 0, width, height))
        if axis == 0
        else ((0, 0, width, 1), (0, height - 1, width, height))
    )
    lines = _extremes(image, first)
    if any(high - low > _PLAIN for low, high in lines):
        return False
    others = _extremes(image, last)
    return all(max(a[1], b[1]) - min(a[0], b[0]) <= _PLAIN for a, b in zip(lines, others, strict=True))


def _extremes(image: Image.Image, box: Box) -> list[tuple[int, int]]:
    """The least and the most of each channel."""
    return cast(list[tuple[int, int]], image.crop(box).getextrema())


def _bars(pixels: _Pixels) -> tuple[int, int]:
    """Rows at both ends that have the colour of the corner."""
    plain = np.abs(pixels - pixels[0, 0]).max(axis=(1, 2)) <= _PLAIN
    if plain.all():
        return 0, 0
    first, last = int(np.argmin(plain)), int(np.argmin(plain[::-1]))
    return (first, last) if first and last and max(first, last) <= _WIDEST_BAR * len(plain) else (0, 0)


def _reaches(inner: _Pixels, colour: npt.NDArray[np.int16]) -> bool:
    """Whether at both ends the picture comes near everywhere: what stands on a plain ground does so in places only."""
    deep = max(2, round(_DEEP * len(inner)))
    return all(
        np.mean(np.any(np.abs(end - colour).max(axis=2) > _PLAIN, axis=0)) >= _ACROSS
        for end in (inner[:deep], inner[-deep:])
    )


def _exact(image: Image.Image, small: Image.Image, box: Box) -> Box:
    """The box of the smaller picture in px of the picture itself."""
    across, down = image.width / small.width, image.height / small.height
    colour = cast(tuple[int, int, int], image.getpixel((0, 0)))

    def is_border(line: int, column: bool) -> bool:
        strip = (line, 0, line + 1, image.height) if column else (0, line, image.width, line + 1)
        extremes = zip(_extremes(image, strip), colour, strict=True)
        return all(c - _FUZZY <= low and high <= c + _FUZZY for (low, high), c in extremes)

    def first(near: int, scale: float, column: bool) -> int:
        at = max(0, round(near * scale) - 2 * round(scale) - 1)
        while at < (image.width if column else image.height) and is_border(at, column):
            at += 1
        return at

    def last(near: int, scale: float, column: bool) -> int:
        at = min(image.width if column else image.height, round(near * scale) + 2 * round(scale) + 1)
        while at > 0 and is_border(at - 1, column):
            at -= 1
        return at

    left = first(box[0], across, True) if box[0] else 0
    top = first(box[1], down, False) if box[1] else 0
    right = last(box[2], across, True) if box[2] < small.width else image.width
    bottom = last(box[3], down, False) if box[3] < small.height else image.height
    return (left, top, right, bottom) if left < right and top < bottom else (0, 0, *image.size)
