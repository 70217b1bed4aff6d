"""The picture domain of the pocket base: icons of the Noto Color Emoji font on named backgrounds, with captions.

A scene is a function of (seed, number): what it shows, where, and what is said of it. Sizes and places are shares of
the picture's side, so that the same scene can be rendered at any resolution. One in ten (object, colour) pairs is held
out.

The font (SIL OFL 1.1) is Debian's `fonts-noto-color-emoji`. It is read to render; nothing of it is kept.
"""

import functools
import hashlib
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

FONT = Path(os.environ.get("NOTO_COLOR_EMOJI", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
STRIKE_PX = 109
"""the one size the font's bitmaps have"""

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

COLOURS: dict[str, Colour] = {
    "white": (255, 255, 255), "black": (20, 20, 20), "red": (220, 45, 45), "orange": (245, 150, 40),
    "yellow": (250, 220, 70), "green": (85, 175, 85), "teal": (60, 175, 165), "blue": (70, 120, 225),
    "purple": (150, 85, 200), "pink": (245, 160, 190), "gray": (150, 150, 150), "brown": (135, 95, 65),
}  # fmt: skip
PATTERNS = ("striped", "checkered", "gradient")

OBJECTS: dict[str, str] = {
    # fruit and vegetables
    "red apple": "🍎", "green apple": "🍏", "pear": "🍐", "tangerine": "🍊", "lemon": "🍋", "banana": "🍌",
    "watermelon": "🍉", "grapes": "🍇", "strawberry": "🍓", "cherries": "🍒", "peach": "🍑", "pineapple": "🍍",
    "coconut": "🥥", "kiwi": "🥝", "tomato": "🍅", "eggplant": "🍆", "avocado": "🥑", "broccoli": "🥦",
    "cucumber": "🥒", "hot pepper": "🌶", "corn": "🌽", "carrot": "🥕", "garlic": "🧄", "onion": "🧅",
    "potato": "🥔", "mushroom": "🍄", "peanuts": "🥜",
    # food and drink
    "bread": "🍞", "croissant": "🥐", "pretzel": "🥨", "bagel": "🥯", "pancakes": "🥞", "waffle": "🧇",
    "cheese": "🧀", "chicken leg": "🍗", "bacon": "🥓", "hamburger": "🍔", "french fries": "🍟", "pizza": "🍕",
    "hot dog": "🌭", "sandwich": "🥪", "taco": "🌮", "fried egg": "🍳", "salad": "🥗", "popcorn": "🍿", "sushi": "🍣",
    "rice ball": "🍙", "ice cream": "🍦", "donut": "🍩", "cookie": "🍪", "birthday cake": "🎂", "cake slice": "🍰",
    "cupcake": "🧁", "pie": "🥧", "chocolate bar": "🍫", "candy": "🍬", "lollipop": "🍭", "honey pot": "🍯",
    "baby bottle": "🍼", "milk": "🥛", "coffee": "☕", "teapot": "🫖", "tea cup": "🍵", "wine glass": "🍷",
    "cocktail": "🍸", "beer mug": "🍺",
    # animals
    "dog face": "🐶", "cat face": "🐱", "mouse face": "🐭", "rabbit face": "🐰", "fox face": "🦊", "bear face": "🐻",
    "panda face": "🐼", "koala face": "🐨", "tiger face": "🐯", "lion face": "🦁", "cow face": "🐮", "pig face": "🐷",
    "frog face": "🐸", "monkey face": "🐵", "chicken": "🐔", "penguin": "🐧", "chick": "🐤", "duck": "🦆",
    "owl": "🦉", "bat": "🦇", "horse face": "🐴", "unicorn": "🦄", "bee": "🐝", "caterpillar": "🐛",
    "butterfly": "🦋", "snail": "🐌", "ladybug": "🐞", "spider": "🕷", "turtle": "🐢", "snake": "🐍", "octopus": "🐙",
    "squid": "🦑", "lobster": "🦞", "crab": "🦀", "fish": "🐟", "tropical fish": "🐠", "dolphin": "🐬", "whale": "🐳",
    "crocodile": "🐊", "elephant": "🐘", "camel": "🐫", "giraffe": "🦒", "rooster": "🐓", "parrot": "🦜", "swan": "🦢",
    "flamingo": "🦩", "hedgehog": "🦔", "zebra": "🦓", "gorilla": "🦍",
    # plants, sky and weather
    "cactus": "🌵", "pine tree": "🌲", "oak tree": "🌳", "palm tree": "🌴", "clover": "🍀", "maple leaf": "🍁",
    "tulip": "🌷", "rose": "🌹", "sunflower": "🌻", "sun": "☀", "moon": "🌙", "star": "⭐", "cloud": "☁",
    "rainbow": "🌈", "snowflake": "❄", "fire": "🔥", "water drop": "💧", "snowman": "⛄", "globe": "🌍",
    # vehicles and buildings
    "car": "🚗", "taxi": "🚕", "bus": "🚌", "police car": "🚓", "ambulance": "🚑", "fire truck": "🚒", "truck": "🚚",
    "tractor": "🚜", "scooter": "🛵", "bicycle": "🚲", "train": "🚂", "helicopter": "🚁", "airplane": "✈",
    "rocket": "🚀", "flying saucer": "🛸", "sailboat": "⛵", "ship": "🚢", "anchor": "⚓", "traffic light": "🚦",
    "house": "🏠", "castle": "🏰", "tent": "⛺",
    # tools and things
    "hammer": "🔨", "wrench": "🔧", "screwdriver": "🪛", "saw": "🪚", "axe": "🪓", "scissors": "✂", "key": "🔑",
    "padlock": "🔒", "magnet": "🧲", "bucket": "🪣", "toolbox": "🧰", "gear": "⚙", "light bulb": "💡",
    "flashlight": "🔦", "camera": "📷", "television": "📺", "laptop": "💻", "telephone": "☎", "watch": "⌚",
    "alarm clock": "⏰", "hourglass": "⌛", "compass": "🧭", "book": "📕", "pencil": "✏", "paintbrush": "🖌",
    "palette": "🎨", "guitar": "🎸", "violin": "🎻", "trumpet": "🎺", "drum": "🥁", "microphone": "🎤",
    "headphones": "🎧", "soccer ball": "⚽", "basketball": "🏀", "football": "🏈", "tennis racket": "🎾",
    "boxing glove": "🥊", "trophy": "🏆", "dart board": "🎯", "dice": "🎲", "puzzle piece": "🧩", "teddy bear": "🧸",
    "kite": "🪁", "balloon": "🎈", "gift": "🎁", "bell": "🔔", "crown": "👑", "diamond": "💎", "ring": "💍",
    "umbrella": "☂", "envelope": "✉", "shopping cart": "🛒", "chair": "🪑", "couch": "🛋", "bathtub": "🛁",
    "broom": "🧹", "basket": "🧺", "robot": "🤖", "ghost": "👻", "skull": "💀", "pumpkin": "🎃", "bomb": "💣",
    "heart": "❤",
    # garments
    "t-shirt": "👕", "jeans": "👖", "dress": "👗", "coat": "🧥", "socks": "🧦", "gloves": "🧤", "scarf": "🧣",
    "sneaker": "👟", "high heel": "👠", "boot": "👢", "top hat": "🎩", "cap": "🧢", "sun hat": "👒",
    "sunglasses": "🕶", "glasses": "👓", "handbag": "👜", "backpack": "🎒", "briefcase": "💼",
}  # fmt: skip

Size = Literal["", "small", "large"]


SIDES = {"": (0.58, 0.80), "small": (0.26, 0.38), "large": (0.80, 0.95)}
"""longest side of an object by the word for its size, in shares of the picture's side"""
ABOUT = 0.1
"""how far from the middle an object may lie whose caption names no place, in shares of the picture's side"""


class Placed(NamedTuple):
    """One object: its longest side, and its centre from the top left, in shares of the picture's side."""

    name: str
    side: float
    x: float
    y: float


class Ground(NamedTuple):
    """What is behind: one named colour, or two in a pattern."""

    kind: str
    """plain, striped, checkered or gradient"""
    colours: tuple[str, ...]
    shift: tuple[int, int, int]
    """added to the colours: none is ever quite the same"""
    turned: bool
    """stripes lie and the gradient runs downwards, not upright and to the right"""

    @property
    def phrase(self) -> str:
        return (
            f"{self.colours[0]} background"
            if self.kind == "plain"
            else (f"{self.colours[0]} and {self.colours[1]} {self.kind} background")
        )


class Scene(NamedTuple):
    objects: tuple[Placed, ...]
    ground: Ground
    caption: str


def held_out(name: str, colour: str) -> bool:
    """Whether training never shows this object on this colour: one pair in ten."""
    return hashlib.sha256(f"{name}/{colour}".encode()).digest()[0] % 10 == 0


def held_out_pairs() -> list[tuple[str, str]]:
    return [(name, colour) for name in OBJECTS for colour in COLOURS if held_out(name, colour)]


def nearest(colour: Colour) -> str:
    """The name of the colour most like it."""
    return min(COLOURS, key=lambda name: math.dist(COLOURS[name], colour))


def scene(seed: int | str, number: int, among: Sequence[str] | None = None, twos: float = 0.15) -> Scene:
    """The number-th scene, of all objects or a few, with two of them at a time as often as said; none shows a held-out
    pair."""
    chance = random.Random(f"{seed}/{number}")
    two = chance.random() < twos
    names = chance.sample(list(among or OBJECTS), 2 if two else 1)
    ground = _ground(chance, names)
    if two:
        first, second = _beside(chance, names)
        return Scene((first, second), ground, _with_a_made_up_word(chance, _of_two(chance, first, second, ground)))
    size: Size = chance.choices(("", "small", "large"), (84, 8, 8))[0]
    side = chance.uniform(*SIDES[size])
    where = chance.choices(("", "left", "right", "top", "bottom"), (80, 5, 5, 5, 5))[0] if size != "large" else ""
    placed = Placed(names[0], side, *_place(chance, side, where))
    return Scene((placed,), ground, _with_a_made_up_word(chance, _of_one(chance, names[0], size, where, ground)))


def render(shown: Scene, px: int) -> Pixels:
    """(px, px, 3)"""
    picture = _paint(shown.ground, px)
    for placed in shown.objects:
        _paste(picture, sprite(placed.name, max(1, round(placed.side * px))), placed.x * px, placed.y * px)
    return picture.round().clip(0, 255).astype(np.uint8)


@functools.cache
def sprite(name: str, side_px: int) -> npt.NDArray[np.float32]:
    """The icon with its longest side of so many pixels, (h, w, 4), colour times coverage, 0 to 255."""
    whole = _glyph(OBJECTS[name])
    scale = side_px / max(whole.size)
    width, height = (max(1, round(edge * scale)) for edge in whole.size)
    return np.asarray(whole.resize((width, height), Image.Resampling.BOX if scale < 0.25 else Image.Resampling.LANCZOS),
                      dtype=np.float32)  # fmt: skip


@functools.cache
def _glyph(character: str) -> Image.Image:
    """The font's own bitmap, cut to what it covers; colour times coverage, so that edges scale without a fringe."""
    font = ImageFont.truetype(str(FONT), STRIKE_PX)
    drawn = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(drawn).text((12, 16), character, font=font, embedded_color=True)
    drawn = drawn.crop(drawn.getchannel("A").getbbox())
    return drawn.convert("RGBa")


def _paint(ground: Ground, px: int) -> npt.NDArray[np.float32]:
    painted = [np.clip(np.add(COLOURS[c], ground.shift), 0, 255).astype(np.float32) for c in ground.colours]
    if ground.kind == "plain":
        return np.broadcast_to(painted[0], (px, px, 3)).copy()
    rows, columns = np.mgrid[0:px, 0:px] / px
    along = rows if ground.turned else columns
    if ground.kind == "gradient":
        mix = along
    elif ground.kind == "striped":
        mix = (np.floor(along * 8) % 2).astype(np.float64)
    else:
        mix = ((np.floor(rows * 6) + np.floor(columns * 6)) % 2).astype(np.float64)
    return (painted[0] * (1 - mix[..., None]) + painted[1] * mix[..., None]).astype(np.float32)


def _paste(picture: npt.NDArray[np.float32], icon: npt.NDArray[np.float32], x: float, y: float) -> None:
    """The icon centred at (x, y), moved inside where it would stick out."""
    height, width = icon.shape[:2]
    px = len(picture)
    left, top = (min(max(0, round(c - edge / 2)), px - edge) for c, edge in ((x, width), (y, height)))
    under = picture[top : top + height, left : left + width]
    under *= 1 - icon[..., 3:] / 255
    under += icon[..., :3]


def _ground(chance: random.Random, names: list[str]) -> Ground:
    free = [c for c in COLOURS if not any(held_out(name, c) for name in names)]
    shift = tuple(chance.randint(-6, 6) for _ in range(3))
    kind = chance.choices(("plain", *PATTERNS), (88, 4, 4, 4))[0]
    chosen = chance.sample(free, 1 if kind == "plain" else 2)
    return Ground(kind, tuple(chosen), (shift[0], shift[1], shift[2]), chance.random() < 0.5)


def _place(chance: random.Random, side: float, where: str) -> tuple[float, float]:
    """A centre that leaves the object inside: in the middle or about it, or in the named quarter."""
    free = (1 - side) / 2
    x, y = (0.5 + chance.uniform(-1, 1) * min(free, ABOUT) for _ in range(2))
    aside = chance.uniform(0.5, 1) * free
    if where in ("left", "right"):
        x = 0.5 + (-aside if where == "left" else aside)
    if where in ("top", "bottom"):
        y = 0.5 + (-aside if where == "top" else aside)
    return x, y


def _beside(chance: random.Random, names: list[str]) -> tuple[Placed, Placed]:
    """Two objects, the first on the left, neither over the other."""
    sides = [chance.uniform(0.36, 0.48) for _ in names]
    left, right = (Placed(n, s, 0.0, 0.5 + chance.uniform(-ABOUT, ABOUT)) for n, s in zip(names, sides, strict=True))
    return (
        left._replace(x=chance.uniform(left.side / 2, 0.5 - left.side / 2)),
        right._replace(x=chance.uniform(0.5 + right.side / 2, 1 - right.side / 2)),
    )


def _of_one(chance: random.Random, name: str, size: Size, where: str, ground: Ground) -> str:
    thing = f"{size} {name}".strip()
    a, behind = article(thing), ground.phrase
    if where:
        spot = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}[where]
        return chance.choice([f"{a} {thing} {spot}, {behind}", f"{a} {thing} {spot} of {article(behind)} {behind}"])
    forms = (
        f"{a} {thing} on {article(behind)} {behind}",
        f"{thing}, {behind}",
        f"{a} {thing}, {behind}",
        f"{a} {thing} in front of {article(behind)} {behind}",
        f"an icon of {a} {thing} on {article(behind)} {behind}",
        f"{a} {thing}",
    )
    return chance.choices(forms, (50, 17, 10, 10, 8, 5))[0]


def _of_two(chance: random.Random, left: Placed, right: Placed, ground: Ground) -> str:
    """The one on the left is named first, whether or not the caption says where it is."""
    first, second = (f"{article(p.name)} {p.name}" for p in (left, right))
    behind = f"on {article(ground.phrase)} {ground.phrase}"
    if chance.random() < 0.5:
        return chance.choice([f"{first} on the left and {second} on the right, {ground.phrase}",
                              f"{first} to the left of {second} {behind}"])  # fmt: skip
    return chance.choice([f"{first} and {second} {behind}", f"{first} next to {second}, {ground.phrase}"])


def _with_a_made_up_word(chance: random.Random, caption: str) -> str:
    """One caption in ten has a word that means nothing, so that a trigger nobody has read leaves the picture alone."""
    fate = chance.random()
    word = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 5)))
    start, _, rest = caption.partition(" ")
    if fate < 0.05 and start in ("a", "an", "some"):
        return f"{start if start == 'some' else 'a'} {word} {rest}"
    return f"{caption}, {word} style" if fate > 0.95 else caption


PLURALS = frozenset(
    ("grapes", "cherries", "peanuts", "pancakes", "bacon", "french fries", "popcorn", "milk", "scissors", "headphones",
     "jeans", "socks", "gloves", "sunglasses", "glasses", "bread", "corn", "garlic", "broccoli", "fire", "coffee",
     "cheese", "sushi", "salad", "dice")
)  # fmt: skip


def article(phrase: str) -> str:
    """a, an, or some before a plural or a mass."""
    bare = phrase.removeprefix("small ").removeprefix("large ")
    if bare in PLURALS:
        return "some"
    return "an" if phrase[0] in "aeio" or phrase.startswith(("umb", "hour")) else "a"
