"""A canvas, marks that are painted on it, and the shapes that they are made of.

Coordinates are units of a 100 x 100 canvas, y down; they are rounded to whole pixels of a canvas four times too large,
which is then averaged down, so that edges are smooth and every machine draws the same.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageDraw

Point = tuple[float, float]
Points = Sequence[Point]
Colour = tuple[int, int, int]

SIZE_PX = 256
OVERSAMPLE = 4

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
