"""The picture domain of the pocket base: what a scene says is what it shows, and what is held out is never shown."""

import re
from collections import Counter
from itertools import pairwise

import icons
import numpy as np
import pytest
import styles
from icons import Scene
from PIL import Image
from render_pictures import picture

SCENES = [icons.scene("test", i) for i in range(4000)]
needs_font = pytest.mark.skipif(not icons.FONT.is_file(), reason="needs the emoji font")


def bare(caption: str) -> str:
    """Without what is made up: a word after the first article, or a style at the end."""
    return re.sub(r", [a-z]{2,5} style$", "", caption)


def test_there_are_enough_objects_and_backgrounds() -> None:
    assert len(icons.OBJECTS) >= 200 and len(set(icons.OBJECTS.values())) == len(icons.OBJECTS)
    assert len(icons.COLOURS) == 12 and len(icons.PATTERNS) >= 3


def test_a_tenth_of_the_pairs_is_held_out_and_never_shown() -> None:
    pairs = icons.held_out_pairs()
    assert 300 <= len(pairs) <= 0.12 * len(icons.OBJECTS) * len(icons.COLOURS)
    assert {colour for _, colour in pairs} == set(icons.COLOURS)
    shown = {(p.name, c) for s in SCENES for p in s.objects for c in s.ground.colours}
    assert not shown & set(pairs)


def test_a_scene_is_a_function_of_seed_and_number() -> None:
    assert [icons.scene("test", i) for i in range(50)] == SCENES[:50]
    assert [icons.scene("other", i) for i in range(50)] != SCENES[:50]


def test_every_object_and_every_ground_is_shown() -> None:
    assert {p.name for s in SCENES for p in s.objects} == set(icons.OBJECTS)
    kinds = Counter(s.ground.kind for s in SCENES)
    assert set(kinds) == {"plain", *icons.PATTERNS} and kinds["plain"] > 0.8 * len(SCENES)
    assert 0.12 < sum(len(s.objects) == 2 for s in SCENES) / len(SCENES) < 0.18


def test_objects_lie_inside_and_apart() -> None:
    for scene in SCENES:
        for placed in scene.objects:
            for centre in (placed.x, placed.y):
                assert placed.side / 2 - 1e-9 <= centre <= 1 - placed.side / 2 + 1e-9
        for left, right in pairwise(scene.objects):
            assert left.x + left.side / 2 <= right.x - right.side / 2 + 1e-9


def test_a_caption_names_what_is_shown() -> None:
    for scene in SCENES:
        for placed in scene.objects:
            assert placed.name in scene.caption
        if "background" in scene.caption:
            assert scene.ground.phrase in scene.caption
        else:
            assert len(scene.objects) == 1 and scene.caption.count(" ") <= 6


def test_of_two_objects_the_one_on_the_left_is_named_first() -> None:
    pairs = [s for s in SCENES if len(s.objects) == 2]
    for scene in pairs:
        left, right = (re.search(rf"\b{re.escape(p.name)}\b", scene.caption) for p in scene.objects)
        assert left and right and left.start() < right.start() and scene.objects[0].x < scene.objects[1].x
    assert any("left" in s.caption for s in pairs) and any("left" not in s.caption for s in pairs)


def test_two_objects_are_shown_as_often_as_asked() -> None:
    for twos in (0.0, 0.6):
        found = [len(icons.scene("asked", i, twos=twos).objects) == 2 for i in range(1000)]
        assert abs(sum(found) / 1000 - twos) < 0.05


def test_flat_pictures_are_in_nobodys_brand_and_their_captions_name_their_colours() -> None:
    told = Counter[str]()
    for i in range(2000):
        placed, brand, caption = styles.flat("test", i)
        ground, fill = icons.nearest(brand.ground), icons.nearest(brand.fill)
        assert placed.name in caption and placed.side / 2 <= min(placed.x, placed.y, 1 - placed.x, 1 - placed.y)
        assert not icons.held_out(placed.name, ground) and all(
            (ground, fill) != (icons.nearest(own.ground), icons.nearest(own.fill)) for own in styles.BRANDS.values()
        )
        if "background" in caption:
            assert f"{ground} background" in caption
        if f"flat {fill} " in caption:
            told["flat"] += 1
        if "outline" in caption:
            assert f"{icons.nearest(brand.outline)} outline" in caption and brand.outline_width
            told["outline"] += 1
        if "line drawing" in caption or ", lines" in caption:
            assert brand.line_width and fill == ground
            told["lines"] += 1
    assert min(told.values()) > 200 and len(told) == 3


def test_pictures_are_flat_as_often_as_asked() -> None:
    for share in (0.0, 0.5):
        found = [isinstance(picture("asked", i, 0.15, share), styles.Flat) for i in range(1000)]
        assert abs(sum(found) / 1000 - share) < 0.05
    assert picture("test", 7, 0.15, 0.0) == SCENES[7]


def test_words_of_size_and_place_are_true() -> None:
    told = Counter[str]()
    for scene in SCENES:
        first = scene.objects[0]
        if len(scene.objects) == 1:
            words = {
                "small": first.side < 0.4, "large": first.side >= 0.8,
                "on the left": first.x < 0.5, "on the right": first.x > 0.5,
                "at the top": first.y < 0.5, "at the bottom": first.y > 0.5,
            }  # fmt: skip
            for word, true in words.items():
                if word in bare(scene.caption):
                    assert true, scene
                    told[word] += 1
        elif "left" in scene.caption:
            assert scene.caption.index(first.name) < scene.caption.index("left")
            told["two"] += 1
    assert min(told.values()) > 50 and len(told) == 7


def test_one_caption_in_ten_has_a_word_that_means_nothing() -> None:
    known = {word for name in icons.OBJECTS for word in name.split()} | set(icons.COLOURS) | set(icons.PATTERNS)
    known |= set(
        "a an some small large icon of on in front to the left right at top bottom and next background".split()
    )
    strange = [s for s in SCENES if any(w not in known for w in re.findall(r"[a-z-]+", s.caption))]
    assert 0.07 < len(strange) / len(SCENES) < 0.13


@pytest.mark.parametrize(
    ("phrase", "article"),
    [("apple pie", "an"), ("umbrella", "an"), ("unicorn", "a"), ("small grapes", "some"), ("orange background", "an"),
     ("hourglass", "an"), ("scissors", "some"), ("gray background", "a")],
)  # fmt: skip
def test_articles(phrase: str, article: str) -> None:
    assert icons.article(phrase) == article


@needs_font
def test_a_scene_is_the_same_picture_at_any_resolution() -> None:
    for scene in SCENES[:20]:
        small, large = (icons.render(scene, px) for px in (64, 128))
        assert small.shape == (64, 64, 3) and large.shape == (128, 128, 3)
        halved = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), dtype=float)
        assert np.abs(halved - small).mean() < 8


@needs_font
def test_a_plain_ground_is_its_colour_and_the_object_covers_what_it_should() -> None:
    for scene in SCENES[:200]:
        if scene.ground.kind != "plain":
            continue
        colour = np.clip(np.add(icons.COLOURS[scene.ground.colours[0]], scene.ground.shift), 0, 255)
        away = np.abs(icons.render(scene, 64) - colour).sum(2) > 0
        assert away.any(axis=0).sum() <= 64 and not away[_outside(scene)].any()


def _outside(scene: Scene) -> np.ndarray:
    """Pixels beyond the squares that hold the objects, a pixel of slack."""
    rows, columns = np.mgrid[0:64, 0:64] + 0.5
    mask = np.ones((64, 64), dtype=bool)
    for placed in scene.objects:
        half = placed.side * 32 + 1.5
        mask &= (np.abs(columns - placed.x * 64) > half) | (np.abs(rows - placed.y * 64) > half)
    return mask
