"""Folders of pictures with captions: noise in chosen sizes, or random colours in several shapes."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLOURS = ("red", "green", "blue", "white", "black", "pink", "gray", "teal")
SQUARE, WIDE = (128, 128), (256, 64)
SHAPES = ((64, 64), (64, 60), (40, 80), (80, 40), (70, 36))
SEED = 20


def pictures(
    folder: Path, sizes: Sequence[tuple[int, int]] = (SQUARE,) * 6, trigger: str = "sks", seed: int = 0
) -> Path:
    """A picture of noise per size, each with a caption of its own."""
    folder.mkdir(parents=True)
    for i, (width, height) in enumerate(sizes):
        noise = np.random.default_rng((seed, i)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"{trigger} {COLOURS[i % 8]} thing {i}".strip())
    return folder


def photos(folder: Path, shapes: tuple[tuple[int, int], ...] = SHAPES, flat: bool = False) -> Path:
    """Pictures of random colours that run into one another, or in flat fields, each with its own caption."""
    folder.mkdir(parents=True)
    chance = random.Random(SEED)
    for i, shape in enumerate(shapes):
        coarse = Image.frombytes("RGB", (4, 4), chance.randbytes(48))
        coarse.resize(shape, Image.Resampling.NEAREST if flat else Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a sks cup number {i}")
    return folder


def photograph(seed: int) -> Image.Image:
    """96 x 96 px with a round thing on a ground as leaves or wood are: levels that change a little everywhere."""
    noise = np.random.default_rng(seed).integers(60, 200, (96, 96, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.2))
    ImageDraw.Draw(picture).ellipse((20, 20, 76, 76), "gold")
    return picture
