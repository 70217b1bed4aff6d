"""Brand styles: any object of `icons`, drawn flat in a few colours. "poster" is the style of `examples/style`.

The silhouette is the emoji's; parts lighter or darker than most of it become details. All is drawn four times too large
and averaged down, as in `draw_examples.py`. Widths are shares of the picture's side: small objects have lines as thick.
"""

import functools
import math
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import icons
import numpy as np
import numpy.typing as npt
from icons import COLOURS, Colour, Pixels, article
from PIL import Image, ImageFilter

OVERSAMPLE = 4
RELIEF_PX = 120
"""longest side of what the parts are cut from, about the size of the font's bitmaps"""
LIGHTER, DARKER = 160, 96
"""what of a relief is a light or a dark part"""
LUMA = (0.299, 0.587, 0.114)

Mask = npt.NDArray[np.bool_]
Layers = npt.NDArray[np.uint8]
"""(h, w), which of a brand's colours shows: 0 is the ground, 6 a line"""
GROUND, SHADOW, OUTLINE, FILL, LIGHT, DARK, LINE = range(7)


@dataclass(frozen=True)
class Brand:
    """Colours from the back to the front; widths in shares of the picture's side."""

    ground: Colour
    shadow: Colour
    outline: Colour
    fill: Colour
    light: Colour
    """of parts lighter than most of the object"""
    dark: Colour
    """of parts darker than most of it"""
    line: Colour
    """of the lines between parts"""
    outline_width: float
    """around the silhouette"""
    shadow_shift: float
    """to the right and down"""
    line_width: float = 0.0

    @property
    def colours(self) -> tuple[Colour, ...]:
        return (self.ground, self.shadow, self.outline, self.fill, self.light, self.dark, self.line)


CREAM: Colour = (255, 248, 228)
INK: Colour = (22, 22, 26)
CHALK: Colour = (240, 246, 255)
BLUE: Colour = (36, 72, 160)

BRANDS: dict[str, Brand] = {
    "poster": Brand(
        ground=(60, 180, 170), shadow=INK, outline=CREAM, fill=(222, 44, 44), light=CREAM, dark=INK, line=INK,
        outline_width=0.042, shadow_shift=0.055,
    ),
    "blueprint": Brand(
        ground=BLUE, shadow=BLUE, outline=CHALK, fill=BLUE, light=(110, 150, 220), dark=BLUE, line=CHALK,
        outline_width=0.03, shadow_shift=0.0, line_width=0.02,
    ),
}  # fmt: skip


def any_brand(seed: int | str) -> Brand:
    """A brand of nobody's; one in three is one of `BRANDS` in which something that matters has another colour."""
    chance = random.Random(f"brand/{seed}")
    ground, shadow, outline, light, dark, line = (_any_colour(chance) for _ in range(6))
    if chance.random() < 1 / 3:
        own = chance.choice(list(BRANDS.values()))
        wrong = chance.sample(["ground", "outline", "fill"], chance.randint(1, 2))
        return replace(own, **{part: _unlike(getattr(own, part), chance) for part in wrong})
    return Brand(
        ground, shadow, outline, _unlike(ground, chance), light, dark, line,
        outline_width=chance.choice([0.0, chance.uniform(0.015, 0.05)]),
        shadow_shift=chance.choice([0.0, chance.uniform(0.02, 0.06)]),
        line_width=chance.choice([0.0, chance.uniform(0.01, 0.03)]),
    )  # fmt: skip


class Flat(NamedTuple):
    """A picture in a brand of nobody's, with a caption that tells its colours."""

    placed: icons.Placed
    brand: Brand
    caption: str


OWNED = {(icons.nearest(brand.ground), icons.nearest(brand.fill)) for brand in BRANDS.values()}
"""grounds and fills of `BRANDS`, which `flat` never shows together"""


def flat(seed: int | str, number: int) -> Flat:
    """The number-th flat picture: an object in few colours, or in lines only; never a held-out pair."""
    chance = random.Random(f"{seed}/{number}/flat")
    name = chance.choice(list(icons.OBJECTS))
    lines = chance.random() < 0.25
    names = _palette(chance, name, lines)
    ground, fill, outline, shadow = (_shade(one, chance) for one in names)
    width, shift = chance.uniform(0.02, 0.05), chance.choice([0.0, chance.uniform(0.02, 0.06)])
    if lines:
        colours = ground, ground, outline, ground, _towards(ground, outline, chance.uniform(0, 0.5)), ground, outline
        brand = Brand(*colours, outline_width=width, shadow_shift=0.0, line_width=width * chance.uniform(0.5, 0.8))
    else:
        # lighter parts stay lighter and darker ones darker, or details would be anybody's guess
        light, dark = (_towards(fill, end, chance.uniform(0.5, 1)) for end in ((255, 255, 255), (20, 20, 20)))
        width = chance.choice([0.0, width, width, width])
        brand = Brand(ground, shadow, outline, fill, light, dark, dark, outline_width=width, shadow_shift=shift)
    side = chance.uniform(0.7, 0.95)
    x, y = (0.5 + chance.uniform(-1, 1) * min((1 - side) / 2, icons.ABOUT) for _ in range(2))
    caption = chance.choices(_captions(name, brand, *names), (45, 45, 10))[0]
    return Flat(icons.Placed(name, side, x, y), brand, caption)


def _palette(chance: random.Random, name: str, lines: bool) -> tuple[str, str, str, str]:
    """Names of colours for ground, fill, outline and shadow; lines alone have the ground between them."""
    free = [c for c in COLOURS if not icons.held_out(name, c)]
    while True:
        ground, fill, outline, shadow = chance.choice(free), *chance.choices(list(COLOURS), k=3)
        fill = ground if lines else fill
        if (ground, fill) not in OWNED and outline != ground and (lines or fill != ground):
            return ground, fill, outline, shadow


def _captions(name: str, brand: Brand, ground: str, fill: str, outline: str, shadow: str) -> tuple[str, str, str]:
    """Three ways to say it, the last without colours."""
    thing, behind = f"{article(name)} {name}", f"{article(ground)} {ground} background"
    if brand.line_width:
        drawing = f"a {outline} line drawing of {thing} on {behind}"
        return drawing, f"{thing}, {outline} lines, {ground} background", f"a line drawing of {thing}"
    flatly, bare = f"a flat {fill} {name}", f"a flat icon of {thing}"
    if not brand.outline_width:
        return f"{flatly} on {behind}", f"{flatly}, {ground} background", bare
    around = f"{flatly} with {article(outline)} {outline} outline"
    under = f" and {article(shadow)} {shadow} shadow" if brand.shadow_shift else ""
    return f"{around}{under} on {behind}", f"{around} on {behind}", bare


def _shade(name: str, chance: random.Random) -> Colour:
    """A colour not far from the named one."""
    red, green, blue = (min(255, max(0, part + chance.randint(-25, 25))) for part in COLOURS[name])
    return red, green, blue


def _towards(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def stylised(placed: icons.Placed, brand: Brand, px: int) -> Pixels:
    """(px, px, 3): the object on the brand's ground; its longest side includes outline and shadow."""
    whole = px * OVERSAMPLE
    layers = _layers(placed.name, brand, round(placed.side * whole), whole)
    left, top = (min(max(0, round(centre * whole - edge / 2)), whole - edge)
                 for centre, edge in zip((placed.x, placed.y), layers.shape[::-1], strict=True))  # fmt: skip
    drawn = np.full((whole, whole), GROUND, np.uint8)
    drawn[top : top + len(layers), left : left + len(layers[0])] = layers
    palette = np.array(brand.colours, np.uint8)
    return np.asarray(Image.fromarray(palette[drawn]).reduce(OVERSAMPLE))


def _layers(name: str, brand: Brand, side: int, whole: int) -> Layers:
    """The object with outline and shadow, its longest side `side` pixels of a picture's `whole`."""
    around, shift = brand.outline_width * whole, round(brand.shadow_shift * whole)
    margin, relief = math.ceil(around), _relief(name)
    scale = max(1, side - 2 * margin - shift) / max(relief.size)
    size = [max(1, round(edge * scale)) for edge in relief.size]
    bands = (np.asarray(band.resize(size, Image.Resampling.BICUBIC)) for band in relief.split())
    tone, cover = (np.pad(band, margin) for band in bands)
    body = cover > 127
    part = np.where(tone > LIGHTER, LIGHT, np.where(tone < DARKER, DARK, FILL))
    silhouette = _grown(body, around)
    layers = np.full([edge + shift for edge in body.shape], GROUND, np.uint8)
    layers[shift:, shift:][silhouette] = SHADOW
    front = layers[: len(body), : len(body[0])]
    front[silhouette] = OUTLINE
    front[body] = part[body]
    front[_grown(_changes(part) & body, brand.line_width * whole / 2) & body & bool(brand.line_width)] = LINE
    return layers


@functools.cache
def _relief(name: str) -> Image.Image:
    """Two bands: how light each part is, 128 where it is like most of the object, and the coverage.

    40 is one deviation of the object's own lightness: a rose has little of it, and still has petals.
    """
    *rgb, cover = np.moveaxis(icons.sprite(name, RELIEF_PX), 2, 0)
    body = cover > 127
    light = np.tensordot(LUMA, rgb, 1) * 255 / np.maximum(cover, 1)
    deviation = light[body].std().clip(20, 50)
    tone = np.where(body, 128 + 40 * (light - np.median(light[body])) / deviation, 128)
    bands = [Image.fromarray(band.clip(0, 255).astype(np.uint8)) for band in (tone, cover)]
    smooth = bands[0].filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(1.0))
    return Image.merge("LA", [smooth, bands[1]])


def _changes(part: npt.NDArray[np.int64]) -> Mask:
    """Where the next pixel to the right or below is of another part."""
    changed = np.zeros(part.shape, bool)
    changed[:, :-1] |= part[:, 1:] != part[:, :-1]
    changed[:-1] |= part[1:] != part[:-1]
    return changed


def _grown(mask: Mask, radius: float) -> Mask:
    """All within so many pixels of the mask."""
    grown, row, reach = np.zeros_like(mask), mask.copy(), 0
    for dy in range(int(radius), -1, -1):
        while reach + 1 <= math.sqrt(radius**2 - dy**2):
            reach += 1
            row[:, reach:] |= mask[:, :-reach]
            row[:, :-reach] |= mask[:, reach:]
        grown[dy:] |= row[: len(row) - dy]
        grown[: len(row) - dy] |= row[dy:]
    return grown


def _any_colour(chance: random.Random) -> Colour:
    """Often black or white, as brands have them."""
    red, green, blue = (chance.randint(0, 255) for _ in range(3))
    return chance.choices([(red, green, blue), INK, (255, 255, 255)], (70, 15, 15))[0]


def _unlike(colour: Colour, chance: random.Random) -> Colour:
    """Far enough from it to be told apart."""
    return next(c for c in iter(lambda: _any_colour(chance), None) if math.dist(c, colour) > 130)
