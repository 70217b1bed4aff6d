"""How often captions by the pocket vocabulary are right: `python benchmarks/captions.py` prints, and exits by the bar.

200 icons on plain grounds, of any size and place; the grounds of product photos that nothing was tuned on; and objects
in brand styles, which the pocket eyes have never seen: there, what counts is that they are not captioned wrongly.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data"), str(ROOT / "benchmarks")]

import foreign  # noqa: E402
import icons  # noqa: E402

from finetune.captioning.vocabulary import read_vocabulary  # noqa: E402
from finetune.captioning.zero_shot import ZeroShot  # noqa: E402
from finetune.data.text.wording import CaptionWords  # noqa: E402
from finetune.errors import DataError  # noqa: E402

ICONS, PX = 200, 256
BAR = 0.9
STYLE = CaptionWords("sks", kind="style")


class Row(NamedTuple):
    what: str
    right: int
    wrong: int
    of: int
    """those without a caption included"""


def scenes(seed: str, count: int) -> list[icons.Scene]:
    """One object each, on one plain colour."""
    found, number = list[icons.Scene](), 0
    while len(found) < count:
        shown = icons.scene(seed, number, twos=0.0)
        found += [shown] if shown.ground.kind == "plain" else []
        number += 1
    return found


def judged(what: str, words: CaptionWords, pictures: Sequence[Image.Image], right: Sequence[str]) -> Row:
    """The captions of pictures against the right ones; a set that is refused has none."""
    captioner, said = ZeroShot(read_vocabulary("pocket"), words), [""] * len(right)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number:03d}.png" for number in range(len(right))]
        for file, picture in zip(files, pictures, strict=True):
            picture.save(file)
        try:
            captioner.check(files)
            said = ["" if one.problem else one.text for one in captioner(files)]
        except DataError:
            pass
    hits = sum(a == b for a, b in zip(said, right, strict=True))
    return Row(what, hits, sum(map(bool, said)) - hits, len(right))


def of_icons(seed: str) -> Row:
    shown = scenes(seed, ICONS)
    right = [f"{_named(s.objects[0].name)} on {_named(s.ground.phrase)}" for s in shown]
    return judged(f"icons, {seed}", CaptionWords(), [Image.fromarray(icons.render(s, PX)) for s in shown], right)


def of_product(name: str) -> Row:
    product = foreign.PRODUCTS[name]
    right = [f"a sks {product.class_word} on {_named(f'{view.background} background')}" for view in product.views]
    photos = [foreign.photo(product, view) for view in product.views]
    return judged(f"{name}, ground", CaptionWords("sks", product.class_word), photos, right)


def of_style(name: str) -> Row:
    style = foreign.STYLES[name]
    objects = [*style.objects, *style.held_out]
    right = [f"{_named(one)}, sks style" for one in objects]
    return judged(f"{name} style, object", STYLE, [foreign.drawing(style, one) for one in objects], right)


def _named(phrase: str) -> str:
    return f"{icons.article(phrase)} {phrase}"


def main() -> None:
    rows = [of_icons("captions"), of_icons("other"), *map(of_product, foreign.PRODUCTS), *map(of_style, foreign.STYLES)]
    sys.stdout.write("| pictures | right | wrong | no caption | of |\n|---|---|---|---|---|\n")
    for row in rows:
        sys.stdout.write(f"| {row.what} | {row.right} | {row.wrong} | {row.of - row.right - row.wrong} | {row.of} |\n")
    icons_right = all(row.right >= BAR * row.of for row in rows[:2])
    grounds_right = all(row.right == row.of for row in rows[2:5])
    sys.exit(0 if icons_right and grounds_right else 1)


if __name__ == "__main__":
    main()
