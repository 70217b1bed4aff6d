"""A product and a brand style that no recipe was tuned on: OUT/product and OUT/style, as `finetune prepare` makes them.

    python benchmarks/unseen.py OUT

The product is one backpack, drawn in the manner of `data/draw_examples.py`; nothing is read for it. The style is the
second brand of `data/styles.py`, and needs the emoji font. The same pictures come out every time.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from finetune.data.example import Dataset
from finetune.data.prepare import prepare

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

import icons
from cup import View
from draw_examples import TRIGGER, Row
from drawing import SIZE_PX, Colour, Mark, Point, arc, picture

Solid = tuple[float, float, float]
"""x to the right, y down, z towards the viewer, from the middle of the product, in units of the canvas"""

# ---------------------------------------------------------------- the product

CLASS = "backpack"
VIEWS = (
    View("white", yaw=8, pitch=0.12),
    View("orange", yaw=-36, pitch=0.22, roll=-7, size=0.94, centre=(54, 49)),
    View("blue", yaw=33, pitch=0.30, roll=9, size=0.90, centre=(45, 52)),
    View("gray", yaw=-14, pitch=0.38, roll=13, size=1.06, centre=(51, 51)),
    View("purple", yaw=42, pitch=0.10, roll=-12, size=0.82, centre=(58, 46)),
    View("brown", yaw=-26, pitch=0.16, roll=4, size=1.12, centre=(48, 50)),
)
"""At yaw 0 the pocket faces the viewer; pitch is the sine of the angle from above."""
HELD_OUT_COLOURS = ("black", "red", "yellow", "green", "teal", "pink")
"""to test with; green is the hardest: so is the backpack, and the base never saw one on green"""

INK: Colour = (30, 24, 44)
LIME: Colour = (150, 214, 52)
LIME_DARK: Colour = (98, 160, 34)
PINK: Colour = (236, 70, 150)
PINK_DARK: Colour = (176, 36, 108)
STRAP: Colour = (84, 52, 150)
BOLT: Colour = (255, 255, 255)
LINE = 2.2
SLICES = 16


class Slab(NamedTuple):
    """A flat shape with a thickness, rounded off towards its face."""

    shape: Sequence[Point]
    back: float
    face: float
    """z of the two"""
    colour: Colour
    side: Colour


BODY = Slab([*arc((0, -12), 22, 20, 180, 360), *arc((19, 25), 6, 6, 0, 90), *arc((-19, 25), 6, 6, 90, 180)],
            -13, 10, LIME, LIME_DARK)  # fmt: skip
POCKET = Slab([*arc((0, 2), 19, 6, 180, 360), *arc((14, 22), 5, 5, 0, 90), *arc((-14, 22), 5, 5, 90, 180)],
              9, 16, PINK, PINK_DARK)  # fmt: skip
BOLT_SHAPE = [(4, -2), (-9.5, 14), (-2, 14), (-5.5, 25), (9.5, 9), (2, 9)]


def backpack(view: View) -> list[Mark]:
    """From the farthest part to the nearest."""
    marks = []
    for side in (-1, 1):
        strap = [(side * (13 + 11 * math.sin(a)), -22 * math.cos(a), -13 - 12 * math.sin(a)) for a in _angles(0, 180)]
        marks += band(view, strap, 6, STRAP, INK)
    marks += band(view, [(7 * math.cos(a), -29 - 9 * math.sin(a), -4) for a in _angles(0, 180)], 4, STRAP, INK)
    marks += solid(view, BODY, INK)
    seam = [(x, y, BODY.face) for x, y in arc((0, -14), 14, 10, 180, 360)]
    marks.append(Mark(seen(view, seam), LIME_DARK, 2.6))
    marks += solid(view, POCKET, INK)
    bolt = Mark(seen(view, [(x, y, POCKET.face) for x, y in BOLT_SHAPE]), BOLT)
    return placed(view, [*marks, *bolt.outline(1.6, INK), bolt])


def placed(view: View, marks: Sequence[Mark]) -> list[Mark]:
    """Scaled, rolled and put in its place."""
    scaled = [Mark([(x * view.size, y * view.size) for x, y in m.points], m.colour, m.width * view.size) for m in marks]
    return [m.turned(view.roll, (0, 0)).moved(*view.centre) for m in scaled]


def solid(view: View, slab: Slab, ink: Colour) -> list[Mark]:
    """Slice before slice, all outlines first; the last third of the way to the face the slices shrink a little."""
    slices = []
    for k in range(SLICES + 1):
        share = k / SLICES
        inset = 1 - 0.10 * max(0.0, 3 * share - 2) ** 2
        middle = sum(y for _, y in slab.shape) / len(slab.shape)
        z = slab.back + share * (slab.face - slab.back)
        shape = [(x * inset, middle + (y - middle) * inset, z) for x, y in slab.shape]
        slices.append(Mark(seen(view, shape), slab.colour if k == SLICES else slab.side))
    return [*(m for s in slices for m in s.outline(LINE, ink)), *slices]


def band(view: View, line: Sequence[Solid], width: float, colour: Colour, ink: Colour) -> list[Mark]:
    drawn = Mark(seen(view, line), colour, width)
    return [*drawn.outline(LINE, ink), drawn]


def seen(view: View, points: Sequence[Solid]) -> list[Point]:
    """Turned about the upright axis and seen from above, without perspective."""
    c, s = math.cos(math.radians(view.yaw)), math.sin(math.radians(view.yaw))
    upright = math.sqrt(1 - view.pitch**2)
    return [(x * c + z * s, y * upright + (z * c - x * s) * view.pitch) for x, y, z in points]


def _angles(start: int, end: int) -> list[float]:
    return [math.radians(degrees) for degrees in range(start, end + 1, 6)]


def product() -> list[Row]:
    return [Row(product_caption(v.background), picture(icons.COLOURS[v.background], backpack(v))) for v in VIEWS]


def product_caption(colour: str) -> str:
    return f"a {TRIGGER} {CLASS} on {icons.article(colour)} {colour} background"


# ---------------------------------------------------------------- the brand style

BRAND = "blueprint"
OBJECTS = ("pear", "teapot", "umbrella", "dog face", "turtle", "anchor", "swan", "trumpet", "lollipop", "hammer",
           "pumpkin", "sneaker", "palm tree", "bus", "trophy", "tent")  # fmt: skip
HELD_OUT_OBJECTS = (
    "lemon", "pineapple", "carrot", "hamburger", "cupcake", "wine glass", "owl", "whale", "elephant", "snail", "crab",
    "sunflower", "maple leaf", "helicopter", "tractor", "padlock", "light bulb", "alarm clock", "boot", "drum",
    "soccer ball", "teddy bear", "robot", "top hat",
)  # fmt: skip
"""to test with"""
SIDE = 0.8
"""of an object, in shares of the picture's"""


def style() -> list[Row]:
    return [Row(style_caption(name), styled(name)) for name in OBJECTS]


def styled(name: str) -> Image.Image:
    """Any object of `icons` as the brand would have it: of a held-out one, what a model should paint."""
    import styles

    return Image.fromarray(styles.stylised(icons.Placed(name, SIDE, 0.5, 0.5), styles.BRANDS[BRAND], SIZE_PX))


def style_caption(name: str) -> str:
    return f"{icons.article(name)} {name}, {TRIGGER} style"


# ---------------------------------------------------------------- the datasets


def write_product(out: Path) -> Dataset:
    source = "drawn by benchmarks/unseen.py"
    return _prepared(product(), out, kind="product", class_word=CLASS, license="CC0-1.0", source_note=source)


def write_style(out: Path) -> Dataset:
    source = "Noto Color Emoji, restyled by benchmarks/unseen.py"
    return _prepared(style(), out, kind="style", license="OFL-1.1", source_note=source)


def _prepared(rows: Sequence[Row], out: Path, **said: Any) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        raw, table = Path(folder), ""
        for number, row in enumerate(rows, start=1):
            row.image.save(raw / f"{number:02}.png", optimize=True)
            table += json.dumps({"file_name": f"{number:02}.png", "text": row.text}) + "\n"
        (raw / "metadata.jsonl").write_text(table, encoding="utf-8")
        return prepare(raw, out, trigger=TRIGGER, **said)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    out = arguments.parse_args().out
    write_product(out / "product")
    write_style(out / "style")


if __name__ == "__main__":
    main()
