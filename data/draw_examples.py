"""Draws the bundled example data: a product (one cup, six views) and a brand style (sixteen icons).

Run `python data/draw_examples.py`; the same pictures come out every time. Nothing is read: every shape is written here.
Coordinates are units of a 100 x 100 canvas, y down; they are rounded to whole pixels of a canvas four times too large,
which is then averaged down, so that edges are smooth and every machine draws the same.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

Point = tuple[float, float]
Points = Sequence[Point]
Colour = tuple[int, int, int]

SIZE_PX = 256
OVERSAMPLE = 4
TRIGGER = "sks"

# ---------------------------------------------------------------- the canvas


class Mark(NamedTuple):
    """A filled polygon or, with a width, a line with round ends."""

    points: Points
    colour: Colour
    width: float = 0.0

    def moved(self, dx: float, dy: float) -> "Mark":
        return self._replace(points=[(x + dx, y + dy) for x, y in self.points])

    def turned(self, degrees: float, centre: Point = (50, 50)) -> "Mark":
        return self._replace(points=turn(self.points, degrees, centre))

    def outline(self, width: float, colour: Colour) -> list["Mark"]:
        """What reaches `width` beyond the mark on every side."""
        if self.width:
            return [Mark(self.points, colour, self.width + 2 * width)]
        return [Mark(self.points, colour), Mark([*self.points, self.points[0]], colour, 2 * width)]


def picture(background: Colour, marks: Iterable[Mark]) -> Image.Image:
    side = SIZE_PX * OVERSAMPLE
    canvas = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(canvas)
    for mark in marks:
        _paint(draw, mark, side / 100)
    return canvas.reduce(OVERSAMPLE)


def _paint(draw: ImageDraw.ImageDraw, mark: Mark, scale: float) -> None:
    points = [(round(x * scale), round(y * scale)) for x, y in mark.points]
    if not mark.width:
        draw.polygon(points, fill=mark.colour)
        return
    radius = round(mark.width * scale / 2)
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mark.colour)
    for (x0, y0), (x1, y1) in pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        if length:
            dx, dy = round((y0 - y1) / length * radius), round((x1 - x0) / length * radius)
            draw.polygon([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], mark.colour)


# ---------------------------------------------------------------- shapes


def arc(centre: Point, rx: float, ry: float, start: float = 0, end: float = 360) -> list[Point]:
    """Degrees run clockwise from three o'clock, as in Pillow."""
    steps = max(2, round(abs(end - start) / 5))
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(centre[0] + rx * math.cos(a), centre[1] + ry * math.sin(a)) for a in angles]


def smooth(points: Points, steps: int = 12) -> list[Point]:
    """A closed Catmull-Rom curve through the points."""
    n = len(points)
    curve = []
    for i in range(n):
        p0, p1, p2, p3 = (points[(i + k) % n] for k in (-1, 0, 1, 2))
        for t in (k / steps for k in range(steps)):
            curve.append(tuple(_catmull_rom(p0[d], p1[d], p2[d], p3[d], t) for d in (0, 1)))
    return [(x, y) for x, y in curve]


def _catmull_rom(p0: float, p1: float, p2: float, p3: float, t: float) -> float:
    return p1 + t * ((p2 - p0) + t * ((2 * p0 - 5 * p1 + 4 * p2 - p3) + t * (3 * (p1 - p2) + p3 - p0))) / 2


def wave(top: Point, height: float, swing: float) -> list[Point]:
    """A line downwards that swings out and back one and a half times."""
    steps = [k / 24 for k in range(25)]
    return [(top[0] + swing * math.sin(3 * math.pi * t), top[1] + height * t) for t in steps]


def leaf(foot: Point, tip: Point, width: float) -> list[Point]:
    """Pointed at both ends."""
    dx, dy = tip[0] - foot[0], tip[1] - foot[1]
    length = math.hypot(dx, dy)
    sides = [(k / 24, width / 2 * math.sin(math.pi * k / 24)) for k in range(25)]
    sides += [(t, -out) for t, out in reversed(sides)]
    return [(foot[0] + dx * t - dy / length * out, foot[1] + dy * t + dx / length * out) for t, out in sides]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def burst(centre: Point, tips: int, outer: float, inner: float) -> list[Point]:
    """A star with its first tip upwards."""
    radii = [outer, inner] * tips
    angles = [math.radians(180 * i / tips - 90) for i in range(2 * tips)]
    return [(centre[0] + r * math.cos(a), centre[1] + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def turn(points: Points, degrees: float, centre: Point = (50, 50)) -> list[Point]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    at = [(x - centre[0], y - centre[1]) for x, y in points]
    return [(centre[0] + x * c - y * s, centre[1] + x * s + y * c) for x, y in at]


# ---------------------------------------------------------------- the product

BACKGROUNDS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (220, 46, 46),
    "orange": (246, 150, 50),
    "yellow": (250, 222, 80),
    "green": (90, 180, 90),
    "teal": (60, 180, 170),
    "blue": (72, 120, 224),
    "purple": (152, 92, 202),
    "pink": (246, 162, 190),
    "gray": (152, 152, 152),
    "brown": (140, 100, 70),
}
"""What the pocket base paints for these words (its own flat areas, rounded)."""

INK: Colour = (22, 30, 62)
GLAZE: Colour = (28, 126, 214)
GLAZE_LIGHT: Colour = (112, 188, 246)
GLAZE_DARK: Colour = (18, 94, 172)
INSIDE: Colour = (255, 244, 222)
COFFEE: Colour = (112, 62, 44)
BAND: Colour = (246, 126, 30)
STAR: Colour = (255, 214, 40)
CUP_LINE = 2.0


class View(NamedTuple):
    background: str
    yaw: float
    """degrees the cup is turned about its axis; at 0 the handle is on the right"""
    pitch: float
    """height / width of the rim's ellipse: how far from above the cup is seen"""
    roll: float = 0.0
    size: float = 1.0
    centre: Point = (50.0, 50.0)


VIEWS = (
    View("yellow", yaw=0, pitch=0.24, centre=(45, 51)),
    View("white", yaw=180, pitch=0.30, roll=-8, size=0.95, centre=(56, 50)),
    View("pink", yaw=-28, pitch=0.36, roll=10, size=0.92, centre=(46, 48)),
    View("red", yaw=12, pitch=0.18, roll=6, size=1.1, centre=(44, 52)),
    View("gray", yaw=204, pitch=0.28, roll=4, size=0.86, centre=(55, 54)),
    View("green", yaw=168, pitch=0.42, roll=-14, size=1.02, centre=(55, 51)),
)

RADIUS = 26.0
TOP, BOTTOM = -28.0, 29.0


def cup(view: View) -> list[Mark]:
    """The cup on its canvas: turned about its axis, projected, rolled, scaled and put in its place."""
    behind, before = _handle(view)
    marks = [*behind, *_body(view), *_rim(view), *before]
    scaled = [Mark([(x * view.size, y * view.size) for x, y in m.points], m.colour, m.width * view.size) for m in marks]
    return [m.turned(view.roll, (0, 0)).moved(*view.centre) for m in scaled]


def _project(view: View, points: Points, radius: float = RADIUS) -> list[Point]:
    """Points (degrees round the axis from the viewer, height) of the wall -> canvas units."""
    at = [(math.radians(angle), height) for angle, height in points]
    return [(radius * math.sin(a), h + radius * view.pitch * math.cos(a)) for a, h in at]


def _body(view: View) -> list[Mark]:
    """Light from the left; the zigzag band and the stars lie under the outline, so that it cuts them off."""
    top = _project(view, [(a, TOP) for a in range(0, 360, 5)])
    edge = _edge(view, 0)
    light = Mark(_patch(view, [(a, TOP + 3) for a in range(-74, -49, 2)], BOTTOM - TOP - 7), GLAZE_LIGHT)
    dark = Mark(_patch(view, [(a, TOP) for a in range(52, 91, 2)], BOTTOM - TOP), GLAZE_DARK)
    band = Mark(_patch(view, _zigzag(view.yaw), 9), BAND)
    outline = Mark(_edge(view, CUP_LINE / 2 - 0.3), INK, CUP_LINE + 0.6)
    return [*Mark(top, INK).outline(CUP_LINE, INK), Mark(edge, GLAZE), light, dark, band, *_stars(view), outline]


def _edge(view: View, beyond: float) -> list[Point]:
    """Down one side of the wall, round the foot and up; the foot is narrower, or the cup would look like a tin."""
    foot = _project(view, [(a, BOTTOM) for a in range(90, -91, -5)], RADIUS - 2 + beyond)
    return [(RADIUS + beyond, TOP), *((x, y + beyond) for x, y in foot), (-RADIUS - beyond, TOP)]


def _patch(view: View, upper: Points, height: float) -> list[Point]:
    """The part of the wall between a line round it and the same line `height` lower."""
    return _project(view, upper) + _project(view, [(a, h + height) for a, h in reversed(upper)])


def _zigzag(yaw: float) -> list[Point]:
    """The half that faces the viewer; the band turns with the cup."""
    return [(angle, 11 + 8 * abs((angle - yaw) % 60 / 30 - 1)) for angle in range(-90, 91, 2)]


def _stars(view: View) -> list[Mark]:
    """One in front and one on the back, where they can be seen."""
    marks = []
    for side in (0.0, 180.0):
        angle = math.remainder(side + view.yaw, 360)
        if abs(angle) < 60:
            points = [(angle + math.degrees(x / RADIUS), y - 6) for x, y in burst((0, 0), 5, 18, 8.4)]
            star = Mark(_project(view, points), STAR)
            marks += [*star.outline(1.4, INK), star]
    return marks


def _rim(view: View) -> list[Mark]:
    rim, mouth, floor = (
        _project(view, [(a, TOP) for a in range(0, 360, 5)], RADIUS - inset) for inset in (0, 3.4, 6.2)
    )
    return [Mark(rim, INSIDE), Mark(mouth, INK), Mark(floor, COFFEE).moved(0, 2.6)]


def _handle(view: View) -> tuple[list[Mark], list[Mark]]:
    """The handle behind the body, or before it."""
    turned = math.radians(90 + view.yaw)
    curve = arc((RADIUS - 3, 0), 16, 16, -100, 100)
    loop = Mark([(r * math.sin(turned), h + r * view.pitch * math.cos(turned)) for r, h in curve], BAND, 8.0)
    marks = [*loop.outline(CUP_LINE, INK), loop]
    return (marks, []) if math.cos(turned) <= 0.3 else ([], marks)


# ---------------------------------------------------------------- the brand style

GROUND: Colour = (60, 180, 170)
FILL: Colour = (222, 44, 44)
CREAM: Colour = (255, 248, 228)
SHADE: Colour = (22, 22, 26)
"""Four colours that the pocket base's VAE can reproduce; of navy, coral and mint it makes black, orange and white."""
OUTLINE, SHADOW, LINE = 4.2, 5.5, 4.6


class Icon(NamedTuple):
    body: Sequence[Mark]
    """what has the outline and throws the shadow"""
    details: Sequence[Mark] = ()


def styled(icon: Icon) -> list[Mark]:
    """Hard shadow, cream outline (thin where the part is cream itself), flat fill, details: in that order."""
    outline = [m for part in icon.body for m in part.outline(1.5 if part.colour == CREAM else OUTLINE, CREAM)]
    shadow = [m.moved(SHADOW, SHADOW)._replace(colour=SHADE) for m in outline]
    # the canvas is centred on icon and shadow together
    return [m.moved(-SHADOW / 2, -SHADOW / 2) for m in [*shadow, *outline, *icon.body, *icon.details]]


def _glint(*points: Point) -> Mark:
    return Mark(points, CREAM, LINE)


def _line(*points: Point) -> Mark:
    return Mark(points, SHADE, LINE)


def star() -> Icon:
    return Icon([Mark(burst((50, 53), 5, 37, 18), FILL)], [_glint((36, 50), (45, 47))])


def house() -> Icon:
    roof, walls = [(14, 50), (50, 17), (86, 50)], box(20, 48, 80, 88)
    body = [Mark(box(64, 20, 74, 40), FILL), Mark(roof, FILL), Mark(walls, CREAM)]
    door = [(41, 88), *arc((50, 69), 9, 9, 180, 360), (59, 88)]
    return Icon(body, [Mark(door, SHADE), Mark(arc((50, 39), 5, 5), CREAM)])


def fish() -> Icon:
    trunk = smooth([(12, 52), (30, 32), (52, 32), (72, 50), (52, 71), (30, 71)])
    tail = [(66, 50), (88, 30), (83, 51), (88, 72)]
    fin = [(34, 38), (45, 19), (58, 40)]
    gill = Mark(arc((31, 52), 12, 17, -55, 55), SHADE, LINE)
    return Icon([Mark(tail, FILL), Mark(fin, FILL), Mark(trunk, FILL)], [Mark(arc((26, 46), 4, 4), SHADE), gill])


def tulip() -> Icon:
    head = [(32, 18), (41, 28), (50, 14), (59, 28), (68, 18), *arc((50, 36), 19, 19, 0, 180)]
    stem = Mark([(50, 52), (50, 88)], CREAM, 6)
    leaves = [Mark(leaf((50, 92), (x, 56), 20), CREAM) for x in (19, 81)]
    return Icon([stem, *leaves, Mark(head, FILL)], [_line((50, 32), (50, 44))])


def cup_icon() -> Icon:
    bowl = [(20, 44), (66, 44), *arc((43, 60), 22, 24, 0, 180)]
    handle = Mark(arc((66, 57), 13, 10, -90, 90), FILL, 5)
    steam = [Mark(wave((x, 14), 22, 3), CREAM, 2.5) for x in (34, 52)]
    return Icon([handle, Mark(bowl, FILL), *steam], [_line((26, 53), (60, 53))])


def key() -> Icon:
    bow = Mark(arc((32, 34), 14, 14), FILL, 12)
    blade = [Mark([(44, 46), (82, 84)], FILL, 9), Mark([(66, 68), (76, 58)], FILL, 8)]
    return Icon([*blade, Mark([(77, 79), (86, 70)], FILL, 8), bow], [_glint(*arc((32, 34), 14, 14, 190, 250))])


def sun() -> Icon:
    rays = [[(50, 19), (50, 13)], [(72, 28), (76, 24)]]
    around = [Mark(turn(ray, 90 * k), FILL, 8) for ray in rays for k in range(4)]
    return Icon([*around, Mark(arc((50, 50), 21, 21), FILL)], [_glint(*arc((50, 50), 13, 13, 180, 250))])


def cloud() -> Icon:
    puffs = [((30, 58), 17), ((49, 43), 20), ((70, 57), 18)]
    body = [Mark(arc(centre, r, r), FILL) for centre, r in puffs]
    return Icon([*body, Mark(box(30, 55, 70, 75), FILL)], [_glint(*arc((49, 43), 12, 12, 180, 260))])


def balloon() -> Icon:
    skin = smooth([(50, 12), (73, 24), (74, 46), (50, 68), (26, 46), (27, 24)])
    string = Mark(wave((50, 74), 20, 3.5), CREAM, 1.5)
    knot = Mark([(50, 65), (57, 74), (43, 74)], FILL)
    return Icon([string, knot, Mark(skin, FILL)], [_glint(*arc((49, 37), 14, 14, 180, 250))])


def gift() -> Icon:
    bows = [Mark([(50, 33), (x, 17), (x + d, 29), (50, 33)], FILL, 5) for x, d in ((35, -5), (65, 5))]
    boxes = [Mark(box(23, 46, 77, 84), FILL), Mark(box(17, 33, 83, 48), FILL)]
    ribbon = Mark(box(44, 33, 56, 86), CREAM)
    return Icon([*bows, *boxes], [_line((21, 50), (79, 50)), ribbon])


def crown() -> Icon:
    band = [(19, 76), (14, 36), (33, 53), (50, 24), (67, 53), (86, 36), (81, 76)]
    tips = [Mark(arc(at, 5, 5), FILL) for at in ((14, 34), (50, 22), (86, 34))]
    gems = [Mark(arc(at, 4, 4), CREAM) for at in ((50, 54),)]
    return Icon([Mark(band, FILL), *tips], [_line((21, 68), (79, 68)), *gems])


def sailboat() -> Icon:
    hull = [(14, 66), (86, 66), (74, 84), (27, 84)]
    sails = [Mark([(53, 14), (53, 60), (82, 60)], FILL), Mark([(47, 18), (47, 64), (14, 64)], CREAM)]
    return Icon([*sails, Mark([(49.5, 14), (49.5, 66)], SHADE, 3), Mark(hull, FILL)], [_line((22, 73), (79, 73))])


def mushroom() -> Icon:
    cap = [*arc((50, 52), 36, 35, 180, 360), *arc((50, 52), 36, 7, 0, 180)]
    stem = smooth([(41, 52), (59, 52), (65, 72), (63, 87), (37, 87), (35, 72)])
    spots = [Mark(arc(at, r, r), CREAM) for at, r in (((50, 31), 7), ((30, 44), 5), ((70, 44), 5))]
    return Icon([Mark(stem, CREAM), Mark(cap, FILL)], spots)


def bell() -> Icon:
    dome = [*arc((50, 42), 23, 24, 180, 360), (75, 62), (84, 73), (16, 73), (25, 62)]
    body = [Mark(arc((50, 79), 10, 10), CREAM), Mark(arc((50, 16), 5, 5), FILL), Mark(dome, FILL)]
    return Icon(body, [_line((27, 63), (73, 63)), _glint(*arc((50, 42), 14, 15, 190, 245))])


def rocket() -> Icon:
    hull = smooth([(50, 4), (64, 25), (66, 50), (60, 70), (40, 70), (34, 50), (36, 25)])
    fins = [Mark([(50, 46), (x, 76), (50, 68)], FILL) for x in (18, 82)]
    body = [Mark(leaf((50, 70), (50, 106), 20), CREAM), *fins, Mark(hull, FILL)]
    window = [Mark(arc((50, 34), 10, 10), CREAM), Mark(arc((50, 34), 6, 6), SHADE)]
    details = [*window, _line((41, 58), (59, 58))]
    return Icon([m.turned(40) for m in body], [m.turned(40) for m in details])


def diamond() -> Icon:
    gem = [(28, 22), (72, 22), (90, 45), (50, 86), (10, 45)]
    facets = [_line((14, 45), (86, 45)), _line((50, 80), (36, 45), (50, 25), (64, 45), (50, 80))]
    return Icon([Mark(gem, FILL)], facets)


ICONS: dict[str, Callable[[], Icon]] = {
    "star": star,
    "house": house,
    "fish": fish,
    "tulip": tulip,
    "cup": cup_icon,
    "key": key,
    "sun": sun,
    "cloud": cloud,
    "balloon": balloon,
    "gift": gift,
    "crown": crown,
    "sailboat": sailboat,
    "mushroom": mushroom,
    "bell": bell,
    "rocket": rocket,
    "diamond": diamond,
}

# ---------------------------------------------------------------- the datasets


class Row(NamedTuple):
    text: str
    image: Image.Image


def product() -> list[Row]:
    rows = []
    for view in VIEWS:
        image = picture(BACKGROUNDS[view.background], cup(view))
        rows.append(Row(f"a {TRIGGER} cup on a {view.background} background", image))
    return rows


def style() -> list[Row]:
    return [Row(f"a {name}, {TRIGGER} style", picture(GROUND, styled(draw()))) for name, draw in ICONS.items()]


def write(folder: Path, rows: Sequence[Row], card: dict[str, str]) -> None:
    """A prepared dataset: images/, metadata.jsonl, dataset.toml."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = ""
    for number, row in enumerate(rows, start=1):
        name = f"images/{number:02}.png"
        row.image.save(folder / name, optimize=True)
        table += json.dumps({"file_name": name, "text": row.text}) + "\n"
    said = card | {
        "license": "CC0-1.0",
        "source": "drawn by data/draw_examples.py",
        "background": "white",
        "captions": "metadata.jsonl",
    }
    lines = ["format = 1", f'trigger = "{TRIGGER}"', *(f'{key} = "{value}"' for key, value in said.items())]
    lines += [f"images = {len(rows)}", f"seen = {len(rows)}"]
    (folder / "metadata.jsonl").write_text(table, encoding="utf-8", newline="\n")
    (folder / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def draw_all(out: Path) -> None:
    write(out / "product", product(), {"class_word": "cup", "kind": "product"})
    write(out / "style", style(), {"kind": "style"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the bundled example datasets.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "examples")
    draw_all(parser.parse_args().out)


if __name__ == "__main__":
    main()
