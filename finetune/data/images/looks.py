"""How a picture looks, in 80 bytes: what a dataset's audit compares and measures, taken while the picture is decoded.

Nothing here judges: `faults` does, by thresholds that may be set.
"""

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from finetune.data.images.borders import Box, content_box
from finetune.data.images.buckets import Size
from finetune.data.images.colours import Colour

LOOKS = struct.Struct("<Q48s3sBHHHHHH")
"""as `Looks` is kept"""
_COLUMNS = np.dtype([
    ("fingerprint", "<u8"), ("cells", "u1", (4, 4, 3)), ("ground", "u1", 3), ("flatness", "u1"), ("detail", "<u2"),
    ("cast", "<u2"), ("borders", "<u2", 4),
])  # fmt: skip
"""the same, of many pictures"""
_HASHED_PX, _GRID, _CELLS = 32, 16, 4
_SMALL_PX = 64
"""the shorter side of what is measured for all but fine detail"""
_LARGEST_PX = 2048
"""Pictures are looked at up to this size: nothing is trained at more."""
_TILE, _TILES = 96, 4
"""px, and tiles across, of larger pictures: fine detail is measured in these"""
_FLAT = 16
"""levels of a channel by which a flat ground may differ from its own colour"""
_STUDIO = 0.85
"""flatness from which on a picture's ground is its own colour, whatever the light"""
_STRONGEST = 0.002
"""the share of places with the strongest edges"""
_FAINT = 6
"""levels: where no edge is stronger than that, nothing is told from it"""
_CRISP, _SOFT = 0.8, 0.4
"""bend over slope of the strongest edges: of a sharp picture, and of one that holds half of its size in detail"""
_NOISY = 24
"""levels: edges that are no stronger may be noise"""
_OCTAVES, _LEAST_PX = 4, 8
_RING = np.flatnonzero(np.pad(np.zeros((_GRID - 2, _GRID - 2), bool), 1, constant_values=True))
_OPPONENT = np.array([[1, 0.5], [-1, 0.5], [0, -1]], np.float32)
"""RGB -> red against green, yellow against blue"""
_LOGS = np.log2(np.arange(256, dtype=np.float32) + 16)
"""by level; raised, as the hue of what is nearly black is noise"""
_GREYEST = 20
"""one in so many colours may be grey, or of the opposite kind"""
_MOST = 65_535


class Looks(NamedTuple):
    """What is known of a picture's looks, within its borders."""

    fingerprint: int
    """64-bit perceptual hash of what lies within the borders"""
    cells: bytes
    """RGB of 4 x 4 parts"""
    ground: Colour
    """the usual colour along the edges"""
    flatness: float
    """the share of the edges, in [0, 1], that has just this colour"""
    detail: float
    """how many times smaller it could be, and hold what it shows; 1 for a sharp picture"""
    cast: float
    """how far even the greyest colours are from grey, in the direction of the mean; in octaves between channels"""
    borders: tuple[int, int, int, int]
    """px of a plain border at the left, top, right and bottom"""


def measure_looks(image: Image.Image) -> bytes:
    """The looks of an RGB picture, packed."""
    shrunk = -(-max(image.size) // _LARGEST_PX)
    base = image.reduce(shrunk) if shrunk > 1 else image
    small = base.reduce(by) if (by := min(base.size) // _SMALL_PX) > 1 else base
    box = content_box(image, small)
    within = small
    if box != (0, 0, *image.size):
        within, base = small.crop(_scaled(box, image, small)), base.crop(_scaled(box, image, base))
    grid = within.resize((_GRID, _GRID), Image.Resampling.BOX)
    pixels = np.asarray(grid, np.int16).reshape(-1, 3)
    ground, flatness = _ground(pixels)
    detail = min(_detail(base) * shrunk, _MOST / 100)
    cast = 0.0 if flatness >= _STUDIO else _cast(pixels)
    left, top, right, bottom = box
    borders = (left, top, image.width - right, image.height - bottom)
    return LOOKS.pack(
        _fingerprint(within), grid.reduce(_GRID // _CELLS).tobytes(), bytes(ground), round(255 * flatness),
        round(100 * detail), round(100 * cast), *(min(side, _MOST) for side in borders),
    )  # fmt: skip


def unpacked_looks(kept: bytes) -> Looks:
    fingerprint, cells, ground, flatness, detail, cast, *borders = LOOKS.unpack(kept)
    left, top, right, bottom = borders
    return Looks(
        fingerprint, cells, tuple(ground), flatness / 255, detail / 100, cast / 100, (left, top, right, bottom)
    )


def looks_table(kept: Sequence[bytes]) -> npt.NDArray[np.void]:
    """The looks of many pictures in columns, in whole numbers as they are kept."""
    return np.frombuffer(b"".join(kept), _COLUMNS)


def without_borders(size: Size, looks: Looks) -> Box:
    """What lies within the borders of a picture, in px."""
    left, top, right, bottom = looks.borders
    return left, top, size.width - right, size.height - bottom


def _scaled(box: Box, image: Image.Image, small: Image.Image) -> Box:
    across, down = small.width / image.width, small.height / image.height
    left, top = -int(-box[0] * across // 1), -int(-box[1] * down // 1)
    return left, top, max(left + 1, int(box[2] * across)), max(top + 1, int(box[3] * down))


def _fingerprint(small: Image.Image) -> int:
    import imagehash

    square = small.convert("L").resize((_HASHED_PX, _HASHED_PX), Image.Resampling.BOX)
    return int.from_bytes(np.packbits(imagehash.phash(square).hash).tobytes(), "big")


def _ground(pixels: npt.NDArray[np.int16]) -> tuple[Colour, float]:
    ring = pixels[_RING]
    red, green, blue = np.sort(ring, axis=0)[len(ring) // 2].tolist()
    near = np.abs(ring - (red, green, blue)).max(axis=1) <= _FLAT
    return (red, green, blue), float(np.count_nonzero(near)) / len(ring)


def _cast(pixels: npt.NDArray[np.int16]) -> float:
    """Light of a colour multiplies the channels: it moves grey and all else by one step in the logarithms' plane. How
    far even those colours are from grey that lie least in the direction of the mean."""
    logs = _LOGS[pixels] @ _OPPONENT
    tint = logs.sum(axis=0)
    if not (length := math.hypot(*tint.tolist())):
        return 0.0
    along = logs @ (tint / length)
    least = len(along) // _GREYEST
    return max(0.0, float(np.partition(along, least)[least]))


# --- fine detail ----------------------------------------------------------------------------------------------------


def _detail(base: Image.Image) -> float:
    """From the strongest edges: a sharp one bends as much as it rises, a soft one rises over many px. Noise and the
    blocks of JPEG look sharp to the px, so a soft or faint picture is looked at again at half of its size."""
    grey, tile = _sample(base)
    found = 1.0
    for octave in range(_OCTAVES):
        if octave:
            grey, tile = grey.reduce(2), tile // 2
        if min(grey.size) < _LEAST_PX:
            break
        steep, bent = _strongest_edges(grey, tile)
        if steep >= _FAINT:
            crispness = 2 * bent / steep
            if crispness <= _SOFT or not octave:
                found = max(found, 2**octave * _CRISP / crispness)
            if crispness > _SOFT and steep >= _NOISY:
                break
    return found


def _sample(base: Image.Image) -> tuple[Image.Image, int]:
    """(grey, and again turned below it, so that rows are its columns; the size of the tiles that it is made of)."""
    side = _TILE * _TILES
    if min(base.size) < side:
        grey = base.convert("L")
        if max(base.size) > side:
            left, top = max(0, base.width - side) // 2, max(0, base.height - side) // 2
            grey = grey.crop((left, top, left + min(side, base.width), top + min(side, base.height)))
        return _both_ways(grey, min(grey.size)), max(grey.size)
    tiles = Image.new("RGB", (side, side))
    for row in range(_TILES):
        for column in range(_TILES):
            left = (base.width - _TILE) * column // (_TILES - 1)
            top = (base.height - _TILE) * row // (_TILES - 1)
            tiles.paste(base.crop((left, top, left + _TILE, top + _TILE)), (column * _TILE, row * _TILE))
    return _both_ways(tiles.convert("L"), side), _TILE


def _both_ways(grey: Image.Image, side: int) -> Image.Image:
    """What is measured along rows is so along columns, too. side: where it is not square, the shorter one; of the
    longer one the middle is taken."""
    left, top = (grey.width - side) // 2, (grey.height - side) // 2
    square = grey if grey.size == (side, side) else grey.crop((left, top, left + side, top + side))
    both = Image.new("L", (side, 2 * side))
    both.paste(square, (0, 0))
    both.paste(square.transpose(Image.Transpose.TRANSPOSE), (0, side))
    return both


def _strongest_edges(grey: Image.Image, tile: int) -> tuple[int, float]:
    """How steep the strongest edges along rows are, over two px, and how far they bend, in levels."""
    width, height = grey.size
    before, after = grey.crop((0, 0, width - 2, height)), grey.crop((2, 0, width, height))
    slopes = ImageChops.difference(before, after)
    bends = ImageChops.difference(grey.crop((1, 0, width - 1, height)), ImageChops.add(before, after, 2))
    for seam in range(tile, width, tile):
        for image in (slopes, bends):
            image.paste(0, (seam - 2, 0, seam, height))
    number = max(1, int(width * height * _STRONGEST))
    return _level(slopes, number), max(_level(bends, number), 0.5)


def _level(image: Image.Image, number: int) -> int:
    """The level that so many px reach."""
    histogram = image.histogram()  # without Python's lock, which `getextrema` holds
    for level in range(255, 0, -1):
        number -= histogram[level]
        if number <= 0:
            return level
    return 0
