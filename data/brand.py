"""The brand style of the examples: sixteen icons in four colours, with a cream outline and a hard shadow."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from drawing import Colour, Mark, Point, arc, box, burst, leaf, smooth, turn, wave

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
