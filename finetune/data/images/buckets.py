"""Buckets, the sizes that images are trained at: planned in integers, chosen for an image, and the image cut to one.

Shape legend: H, W pixels; arrays are (3, H, W) float32 in [-1, 1]; sizes are (width, height) in pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.errors import DataError

Array = npt.NDArray[np.float32]


class Size(NamedTuple):
    width: int
    height: int


class Bucket(NamedTuple):
    """A size that images are trained at, in pixels; both sides are multiples of the stride."""

    width: int
    height: int


class SizeConditioning(NamedTuple):
    """SDXL's size and crop conditioning in px, in the order of its time ids (arXiv:2307.01952, section 2.2)."""

    original_height: float
    original_width: float
    crop_top: float
    """Crop offsets count pixels of the resized image."""
    crop_left: float
    """If the image is flipped, the offset is that in the flipped image."""
    target_height: float
    target_width: float


def plan_buckets(area_px: int, stride: int, max_aspect: float) -> list[Bucket]:
    """Candidate sizes from tallest to widest: the square, and every shape that no other contains.

    Each has at most `area_px` pixels, sides that are multiples of `stride`, and longest / shortest <= `max_aspect`.

    Raises:
        DataError: not even one stride by one stride fits.
    """
    side = math.isqrt(area_px) // stride
    if side == 0:
        raise DataError(
            f"resolution {math.isqrt(area_px)} px is less than {stride} px, the size multiple of this base",
            "raise data.resolution",
        )
    cells = area_px // (stride * stride)
    shapes = [(w, cells // w) for w in range(1, math.isqrt(int(cells * max_aspect)) + 1)]
    shapes = [(w, h) for w, h in shapes if max(w, h) <= max_aspect * min(w, h)]
    mirrored = sorted({*shapes, *((h, w) for w, h in shapes)})
    largest = [a for a in mirrored if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in mirrored)]
    return [Bucket(w * stride, h * stride) for w, h in sorted({*largest, (side, side)}, key=lambda s: (s[0] / s[1], s))]


def usual_stride(resolution: int) -> int:
    """The stride in px for previews where no base is named: 64 as for Stable Diffusion, less for tiny resolutions."""
    return min(64, max(8, resolution // 4 // 8 * 8))


def choose_bucket(size: Size, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket that crops the least of the image; among equals the largest, then the widest."""
    return min(buckets, key=lambda b: (crop_loss(size, b), -b.width * b.height, -b.width))


def crop_loss(size: Size, bucket: Bucket) -> float:
    """The share of the image's area, in [0, 1), that covering the bucket and cropping throws away."""
    ours, theirs = size.width * bucket.height, bucket.width * size.height
    return 1 - min(ours, theirs) / max(ours, theirs)


def enlargement(size: Size, bucket: Bucket) -> float:
    """How many times the image is magnified to cover the bucket; above 1 it is upscaled."""
    return max(bucket.width / size.width, bucket.height / size.height)


def window(size: Size, bucket: Bucket, place: float = 0.5) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the part of an image that `fit` keeps, in its own pixels."""
    width, height = float(size.width), float(size.height)
    if size.width * bucket.height > bucket.width * size.height:
        width = size.height * bucket.width / bucket.height
    else:
        height = size.width * bucket.height / bucket.width
    left, top = (size.width - width) * place, (size.height - height) * place
    return left, top, min(left + width, size.width), min(top + height, size.height)


def fit(image: Image.Image, bucket: Bucket, place: float = 0.5, flip: bool = False) -> Image.Image:
    """The image scaled to cover the bucket, never distorted, cut to it, then mirrored.

    `place` in [0, 1] is where along the one cropped axis the window lies: 0 touches left or top, 1 right or bottom.
    """
    box = window(Size(image.width, image.height), bucket, place)
    scaled = image.resize(bucket, Image.Resampling.LANCZOS, box=box)  # one step, so no side is rounded before the cut
    return scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else scaled


def size_conditioning(size: Size, bucket: Bucket, place: float = 0.5, flip: bool = False) -> SizeConditioning:
    """The conditioning that describes what `fit` does to an image of that size."""
    scale = enlargement(size, bucket)
    left, top = ((edge * scale - kept) * place for edge, kept in zip(size, bucket, strict=True))
    if flip:
        left = size.width * scale - bucket.width - left
    return SizeConditioning(size.height, size.width, top, left, bucket.height, bucket.width)


def to_array(image: Image.Image) -> Array:
    """RGB image -> (3, H, W) float32 in [-1, 1]: 0 -> -1, 255 -> 1."""
    pixels = np.asarray(image, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
