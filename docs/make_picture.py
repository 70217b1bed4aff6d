"""Compose docs/learnt.png, the picture of README, from what is there: python docs/make_picture.py

Made on 2026-11-26 from docs/product.png and docs/style.png, the sheets of runs of the shipped recipes pocket-product
and pocket-style (upper row the base, lower row the adapter, same prompts and seeds), and the pictures in data/examples
that the two learnt from. Nothing is generated here: four columns of six are cut out of each sheet, laid side by side.
"""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "data" / "examples"
PAGE = DOCS / "learnt.png"
TILE, GAP, LEFT = 192, 10, 300
INK, SOFT, GROUND, LINE = "#1d1c1a", "#5c5852", "#fbfaf8", "#0b5cad"


class Strip(NamedTuple):
    """One subject: what it learnt from, and a sheet's columns."""

    title: str
    pictures: Path
    columns: int
    sheet: Path
    left: int
    top: int
    shown: dict[int, str]
    """column of the sheet -> what was asked for"""


STRIPS = (
    Strip(
        "a brand style, from 16 icons",
        EXAMPLES / "style" / "images",
        4,
        DOCS / "style.png",
        51,
        34,
        {
            0: "a car,\nsks style",
            1: "a banana,\nsks style",
            4: "a camera,\nsks style",
            5: "without the trigger:\na banana",
        },
    ),
    Strip(
        "a product, from 6 pictures",
        EXAMPLES / "product" / "images",
        3,
        DOCS / "product.png",
        45,
        52,
        {
            0: "a sks cup on a\npurple background",
            1: "a sks cup on a\nblack background",
            3: "a sks cup on a\nbrown background",
            4: "without the trigger:\na tea cup",
        },
    ),
)
HEAD = 52
HEIGHT = 2 * TILE + 3 * GAP + HEAD + 8


def drawn() -> Image.Image:
    """Both strips, one above the other."""
    width = LEFT + 4 * (TILE + GAP) + 24
    page = Image.new("RGB", (width, len(STRIPS) * HEIGHT + GAP), GROUND)
    for i, strip in enumerate(STRIPS):
        _draw(page, strip, i * HEIGHT + GAP)
    return page


def _draw(page: Image.Image, strip: Strip, top: int) -> None:
    draw = ImageDraw.Draw(page)
    draw.text((24, top + 22), strip.title, INK, _font(19))
    paths = sorted(strip.pictures.iterdir())
    side = (LEFT - 84 - GAP) // strip.columns
    for n, path in enumerate(paths):
        with Image.open(path) as opened:
            small = opened.convert("RGB").resize((side - 4, side - 4), Image.Resampling.LANCZOS)
        page.paste(small, (24 + n % strip.columns * side, top + HEAD + n // strip.columns * side))
    with Image.open(strip.sheet) as opened:
        sheet = opened.convert("RGB")
    for row, word in enumerate(("before", "after")):
        y = top + HEAD + row * (TILE + GAP)
        draw.text((LEFT - 12, y + TILE // 2), word, LINE if row else SOFT, _font(18), anchor="rm")
        for n, column in enumerate(strip.shown):
            x, cut = strip.left + column * (TILE + 8), strip.top + row * (TILE + 8)
            page.paste(sheet.crop((x, cut, x + TILE, cut + TILE)), (LEFT + n * (TILE + GAP), y))
    for n, asked in enumerate(strip.shown.values()):
        draw.text((LEFT + n * (TILE + GAP), top + 4), asked, INK, _font(17))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    drawn().save(PAGE, optimize=True)
