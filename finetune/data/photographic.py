"""Whether pictures are drawn in flat colours, or photographs: the pocket base, and the judge that comes with it, know
drawn ones only.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from finetune.data.example import Example
from finetune.data.images.decode import open_rgb

PHOTOGRAPHS = "photographs, or have patterned grounds"
"""what is said of them"""
_LOOKED_AT = 8
"""pictures; of more, evenly spread ones"""
_SIDE_PX = 64
_FLAT, _EDGE = 3, 24
"""Levels of a channel from a pixel to the next: up to the first is flat, above the second an edge."""
_TEXTURED = 0.2
"""Texture above which pictures count as photographs: the median of 13 drawn subjects is at most 0.17, of ten
photographed ones at least 0.23, of products on a checked cloth 0.29 (docs/log.md)."""


def are_photographs(examples: Sequence[Example]) -> bool:
    """Whether most have the texture of photographs, or of a patterned ground.

    Raises:
        DataError: a picture is not the one that was looked at before.
    """
    some = examples[:: -(-len(examples) // _LOOKED_AT)]
    return median(_of_file(e.path, e.digest) for e in some) > _TEXTURED


def texture(picture: Image.Image) -> float:
    """The share of places, in [0, 1], that are neither flat nor an edge, of an RGB picture at 64 px: shading, grain,
    leaves, wood."""
    levels = np.asarray(picture.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS), np.int16)
    across = np.abs(np.diff(levels, axis=1)).max(axis=2)[:-1]
    down = np.abs(np.diff(levels, axis=0)).max(axis=2)[:, :-1]
    steps = np.maximum(across, down)
    return float(np.mean((steps > _FLAT) & (steps <= _EDGE)))


@lru_cache(maxsize=64)
def _of_file(path: Path, digest: str) -> float:
    return texture(open_rgb(path, digest=digest))
