"""The product of the examples: one cup, six views."""

import math
from typing import NamedTuple

from drawing import Colour, Mark, Point, Points, arc, burst

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
