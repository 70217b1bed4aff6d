"""Pictures as users have them, on which no recipe is tuned: three products and three styles, without captions.

    python benchmarks/foreign.py OUT      writes OUT/NAME for each, as its owner would hand it over

Files are called as cameras and designers call them, one product is photographed upright, one is of a kind that the
pocket base knows (a handbag), one it half knows (a kettle; it has read of teapots) and one it has never read of (a
lamp); styles are lines, flat fills and shaded ones. Products are drawn by the script, styles need the emoji font. The
same pictures come out every time.
"""

import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "data"), str(ROOT / "benchmarks")]

import icons  # noqa: E402
import styles  # noqa: E402
from cup import View  # noqa: E402
from drawing import SIZE_PX, Colour, Mark, arc, box, picture  # noqa: E402
from styles import Brand  # noqa: E402
from unseen import Slab, band, placed, seen, solid  # noqa: E402

# ---------------------------------------------------------------- three products


class Product(NamedTuple):
    class_word: str
    drawn: Callable[[View], list[Mark]]
    views: tuple[View, ...]
    held_out: tuple[str, ...]
    """backgrounds to test with"""
    file_name: str
    """of the photos, with a number"""
    first: int
    width_px: int = SIZE_PX
    """of pictures SIZE_PX high"""


PLUM: Colour = (128, 60, 160)
PLUM_DARK: Colour = (90, 36, 120)
CREAM: Colour = (255, 240, 190)
MINT: Colour = (70, 200, 170)
INK: Colour = (36, 20, 50)
DOTS = [(x + (6 if row % 2 else 0), -4 + 9 * row) for row in range(4) for x in (-21, -9, 3, 15)]

BAG = Slab([(-27, -10), (27, -10), (32, 26), (-32, 26)], -9, 9, PLUM, PLUM_DARK)


def handbag(view: View) -> list[Mark]:
    """A purple bag with cream dots and a mint handle."""
    handle = [(15 * math.cos(a), -10 - 24 * math.sin(a), 0) for a in _degrees(0, 180)]
    marks = band(view, handle, 5, MINT, INK)
    marks += solid(view, BAG, INK)
    for x, y in DOTS:
        marks.append(Mark(seen(view, [(px, py, BAG.face) for px, py in arc((x + 3, y), 3.2, 3.2)]), CREAM))
    clasp = Mark(seen(view, [(x, y, BAG.face + 1) for x, y in arc((0, -10), 5, 4)]), MINT)
    return placed(view, [*marks, *clasp.outline(1.4, INK), clasp])


TANGERINE: Colour = (244, 120, 36)
TANGERINE_DARK: Colour = (196, 84, 18)
NAVY: Colour = (26, 42, 110)
SNOW: Colour = (250, 250, 250)
KETTLE = Slab([*arc((0, -4), 20, 18, 180, 360), (27, 26), (-27, 26)], -12, 12, TANGERINE, TANGERINE_DARK)
STRIPE = [(-25.5, 12), (25.5, 12), (26.2, 19), (-26.2, 19)]
SPOUT = Slab([(20, 8), (38, -14), (44, -10), (26, 20)], -4, 4, TANGERINE, TANGERINE_DARK)


def kettle(view: View) -> list[Mark]:
    """An orange kettle with a white stripe, a navy handle and a navy knob."""
    handle = [(24 * math.cos(a), -14 - 26 * math.sin(a), 0) for a in _degrees(20, 160)]
    marks = band(view, handle, 5, NAVY, INK)
    marks += solid(view, SPOUT, INK)
    marks += solid(view, KETTLE, INK)
    marks.append(Mark(seen(view, [(x, y, KETTLE.face) for x, y in STRIPE]), SNOW))
    knob = Mark(seen(view, [(x, y, 0) for x, y in arc((0, -25), 5, 5)]), NAVY)
    return placed(view, [*marks, *knob.outline(1.4, INK), knob])


LEMON: Colour = (250, 214, 40)
LEMON_DARK: Colour = (204, 160, 16)
BERRY: Colour = (206, 30, 84)
SHADE = Slab([(-12, -40), (12, -40), (24, -12), (-24, -12)], -10, 10, LEMON, LEMON_DARK)
FOOT = Slab(box(-17, 32, 17, 38), -10, 10, BERRY, (150, 14, 56))


def lamp(view: View) -> list[Mark]:
    """A lamp with a yellow shade, one berry band on it, a black stem and a berry foot."""
    marks = solid(view, FOOT, INK)
    marks += band(view, [(0, 34, 0), (0, 12, 0), (0, -12, 0)], 4, (40, 40, 48), INK)
    marks += solid(view, SHADE, INK)
    stripe = [(-20, -22), (20, -22), (22.2, -16.5), (-22.2, -16.5)]
    marks.append(Mark(seen(view, [(x, y, SHADE.face) for x, y in stripe]), BERRY))
    return placed(view, marks)


def _degrees(start: int, end: int) -> list[float]:
    return [math.radians(degrees) for degrees in range(start, end + 1, 6)]


def _views(*grounds: str, seed: str) -> tuple[View, ...]:
    chance = random.Random(seed)
    return tuple(
        View(ground, yaw=chance.uniform(-38, 38), pitch=chance.uniform(0.1, 0.35), roll=chance.uniform(-12, 12),
             size=chance.uniform(0.84, 1.06), centre=(chance.uniform(46, 54), chance.uniform(47, 53)))
        for ground in grounds
    )  # fmt: skip


PRODUCTS = {
    "handbag": Product("handbag", handbag, _views("white", "pink", "gray", "teal", "orange", "brown", seed="handbag"),
                       ("yellow", "blue", "green", "red", "black"), "IMG_{:04d}.jpg", 2041),
    "kettle": Product("kettle", kettle, _views("white", "green", "purple", "gray", "yellow", seed="kettle"),
                      ("red", "teal", "pink", "blue", "brown"), "DSC{:05d}.JPG", 117),
    "lamp": Product("lamp", lamp, _views("gray", "blue", "white", "brown", "green", "pink", "black", seed="lamp"),
                    ("purple", "teal", "red", "orange", "yellow"), "PXL_20260412_0915{:02d}.jpg", 21, width_px=176),
}  # fmt: skip


def photo(product: Product, view: View) -> Image.Image:
    shown = picture(icons.COLOURS[view.background], product.drawn(view))
    left = (SIZE_PX - product.width_px) // 2
    return shown.crop((left, 0, left + product.width_px, SIZE_PX))


# ---------------------------------------------------------------- three styles


class Style(NamedTuple):
    drawn: Callable[[icons.Placed, int], icons.Pixels]
    objects: tuple[str, ...]
    held_out: tuple[str, ...]
    """objects to test with"""
    file_name: Callable[[int, str], str]
    """of the number-th picture, of that object"""


LINES = Brand(
    ground=(250, 240, 220), shadow=(250, 240, 220), outline=(28, 44, 104), fill=(250, 240, 220), light=(250, 240, 220),
    dark=(244, 132, 104), line=(28, 44, 104), outline_width=0.03, shadow_shift=0.0, line_width=0.022,
)  # fmt: skip
FLAT = Brand(
    ground=(250, 196, 60), shadow=(250, 196, 60), outline=(250, 196, 60), fill=(110, 52, 160), light=(255, 255, 255),
    dark=(60, 20, 96), line=(60, 20, 96), outline_width=0.0, shadow_shift=0.0,
)  # fmt: skip
SHADED = Brand(
    ground=(44, 48, 58), shadow=(20, 22, 28), outline=(44, 48, 58), fill=(240, 110, 160), light=(255, 214, 140),
    dark=(120, 40, 120), line=(120, 40, 120), outline_width=0.0, shadow_shift=0.05,
)  # fmt: skip


def _flat(brand: Brand) -> Callable[[icons.Placed, int], icons.Pixels]:
    return lambda placed, px: styles.stylised(placed, brand, px)


def _shaded(placed: icons.Placed, px: int) -> icons.Pixels:
    """Every object shaded from pink above to amber below, on slate."""
    drawn = styles.stylised(placed, SHADED, px).astype(np.float32)
    near = np.clip(1 - np.linalg.norm(drawn - np.array(SHADED.fill), axis=2, keepdims=True) / 90, 0, 1)
    along = np.linspace(0, 1, px, dtype=np.float32)[:, None, None]
    ramp = (1 - along) * np.array((244, 60, 150), np.float32) + along * np.array((255, 180, 70), np.float32)
    return np.asarray((drawn * (1 - near) + ramp * near).round().clip(0, 255), dtype=np.uint8)


_TEST = (
    "car", "banana", "cat face", "strawberry", "pizza", "guitar", "penguin", "cactus", "butterfly", "castle",
    "camera", "owl", "hammer", "robot", "sneaker",
)  # fmt: skip
STYLES = {
    # a designer's export: the name says what it is
    "lines": Style(_flat(LINES), ("bell", "crown", "anchor", "key", "fish", "tulip", "house", "rocket", "star", "cloud",
                                  "mushroom", "sailboat", "balloon", "gift", "diamond", "moon"), _TEST,
                   lambda n, name: f"{name.replace(' ', '-')}.png"),
    "flat": Style(_flat(FLAT), ("pear", "teapot", "umbrella", "dog face", "turtle", "swan",
                                "trumpet", "lollipop", "pumpkin", "palm tree", "bus", "trophy", "tent", "snail",
                                "padlock", "drum"), _TEST,
                  lambda n, name: f"ic_{name.replace(' ', '_')}_64@2x.png"),
    # numbered, with remarks on the file
    "shaded": Style(_shaded, ("lemon", "whale", "elephant", "crab", "sunflower", "tractor", "light bulb",
                              "alarm clock", "boot", "soccer ball", "teddy bear", "top hat", "cupcake", "wine glass",
                              "ghost", "heart"), _TEST,
                    lambda n, name: f"{n:02d}_{name.title().replace(' ', '')}_final.png"),
}  # fmt: skip
SIDE = 0.8
"""of an object, in shares of the picture's"""


def drawing(style: Style, name: str, px: int = SIZE_PX) -> Image.Image:
    return Image.fromarray(style.drawn(icons.Placed(name, SIDE, 0.5, 0.5), px))


# ---------------------------------------------------------------- what the referee learns to tell apart


def shows(name: str, seed: str, count: int) -> list[Image.Image]:
    """Renders of a subject that its owner has no picture of: other views on any ground, other objects."""
    chance = random.Random(f"{seed}/{name}")
    if name in PRODUCTS:
        views = [v for n in range(count) for v in _views(chance.choice(list(icons.COLOURS)), seed=f"{seed}/{name}/{n}")]
        return [_square(photo(PRODUCTS[name], view)) for view in views]
    objects = [o for o in icons.OBJECTS if o not in STYLES[name].objects]
    placed = [icons.Placed(chance.choice(objects), chance.uniform(0.55, 0.95), 0.5, 0.5) for _ in range(count)]
    return [Image.fromarray(STYLES[name].drawn(one, 64)) for one in placed]


def shows_not(name: str, seed: str, count: int) -> list[Image.Image]:
    """Renders that might be taken for it: icons, those of its class more often, other brands, other subjects."""
    chance = random.Random(f"{seed}/{name}/not")
    known = {"handbag": "handbag", "kettle": "teapot", "lamp": "light bulb"}.get(name)
    icon = [icons.render(icons.scene(f"{seed}/{name}", n, twos=0.0), 64) for n in range(count // 2)]
    if known:
        icon += [icons.render(icons.scene(f"{seed}/{name}/class", n, [known], 0.0), 64) for n in range(count // 4)]
    brands = [styles.any_brand(f"{seed}/{n}") for n in range(count // 4)]
    some = [styles.stylised(icons.Placed(chance.choice([known or "star", *icons.OBJECTS]), 0.8, 0.5, 0.5), b, 64)
            for b in brands]  # fmt: skip
    others = [
        one for other in (*PRODUCTS, *STYLES) if other != name for one in shows(other, f"{seed}/not", count // 16)
    ]
    return [*(Image.fromarray(one) for one in [*icon, *some]), *others]


def _square(shown: Image.Image) -> Image.Image:
    """A picture of another shape, as a square base paints it: on more of the same ground."""
    page = Image.new("RGB", (max(shown.size),) * 2, shown.getpixel((0, 0)))  # type: ignore[arg-type]
    page.paste(shown, ((page.width - shown.width) // 2, 0))
    return page.resize((64, 64), Image.Resampling.BOX)


# ---------------------------------------------------------------- the folders


def write(name: str, out: Path) -> None:
    """The folder of a subject, as its owner has it."""
    out.mkdir(parents=True)
    if name in PRODUCTS:
        product = PRODUCTS[name]
        for number, view in enumerate(product.views):
            photo(product, view).save(out / product.file_name.format(product.first + 3 * number), quality=93)
    else:
        style = STYLES[name]
        for number, subject in enumerate(style.objects, 1):
            drawing(style, subject).save(out / style.file_name(number, subject), optimize=True)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        sys.exit(__doc__)
    for name in (*PRODUCTS, *STYLES):
        write(name, Path(arguments[0]) / name)


if __name__ == "__main__":
    main(sys.argv[1:])
