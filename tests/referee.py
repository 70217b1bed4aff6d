"""A referee for the example data: what do pictures show, judged by their colours alone."""

import numpy as np
from PIL import Image

BACKGROUNDS = {
    "white": (255, 255, 255), "black": (20, 20, 20), "red": (220, 45, 45), "orange": (245, 150, 40),
    "yellow": (250, 220, 70), "green": (85, 175, 85), "teal": (60, 175, 165), "blue": (70, 120, 225),
    "purple": (150, 85, 200), "pink": (245, 160, 190), "gray": (150, 150, 150), "brown": (135, 95, 65),
}  # fmt: skip
"""as the pocket base paints them"""
CUP = {"blue": (28, 126, 214), "yellow": (255, 214, 40), "orange": (246, 126, 30)}
STYLE = {"ground": (60, 180, 170), "fill": (222, 44, 44), "outline": (255, 248, 228), "shadow": (22, 22, 26)}


def background(image: Image.Image) -> str:
    """Name of the colour nearest to the border's median."""
    edge = _edge(image)
    return min(BACKGROUNDS, key=lambda name: np.abs(edge - BACKGROUNDS[name]).sum())


def cup_score(image: Image.Image) -> float:
    """How much of the cup's three colours stands before the background: the scarcest decides, 0 to 1."""
    pixels = _pixels(image).reshape(-1, 3)
    shown = pixels[~_near(pixels, _edge(image), 100)]
    shares = [_near(shown, colour, 100).sum() / len(pixels) for colour in CUP.values()]
    return min(1.0, *(float(s) / enough for s, enough in zip(shares, (0.08, 0.015, 0.03), strict=True)))


def style_score(image: Image.Image) -> float:
    """Share of the pixels near one of the style's four colours; 0 unless the fill stands on the ground. 0 to 1."""
    pixels = _pixels(image).reshape(-1, 3)
    if background(image) != "teal" or _near(pixels, STYLE["fill"], 100).mean() < 0.04:
        return 0.0
    return float(np.logical_or.reduce([_near(pixels, colour, 130) for colour in STYLE.values()]).mean())


def _near(pixels: np.ndarray, colour: object, distance: int) -> np.ndarray:
    return np.abs(pixels - np.asarray(colour)).sum(1) < distance


def _edge(image: Image.Image) -> np.ndarray:
    pixels = _pixels(image)
    return np.median(np.concatenate([side.reshape(-1, 3) for side in (pixels[:4], pixels[-4:], pixels[:, :4])]), 0)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float64)
