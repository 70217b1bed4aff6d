"""The referee judges pictures it never saw: drawn examples, flat shapes and, where the font is, fresh renders."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import icons
import numpy as np
import pytest
import styles
import torch
from PIL import Image, ImageDraw
from referee import classifier, train_classifier
from referee.classifier import judge, load
from safetensors import safe_open

from finetune import resources as shipped

needs_font = pytest.mark.skipif(not icons.FONT.exists(), reason="needs the font NotoColorEmoji")


def examples(name: str) -> list[tuple[Image.Image, str]]:
    root = shipped.EXAMPLES / name
    rows = map(json.loads, (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    return [(Image.open(root / row["file_name"]).convert("RGB"), row["text"]) for row in rows]


def shapes(ground: Image.Image) -> Iterator[Image.Image]:
    """A disc, a box and a triangle, each in a colour that stands out."""
    side = ground.width
    for name, colour in (("ellipse", (250, 240, 30)), ("rectangle", (120, 30, 140)), ("polygon", (240, 240, 240))):
        picture = ground.copy()
        box = [side * share for share in (0.25, 0.3, 0.7, 0.75)]
        corners = [(side * x, side * y) for x, y in ((0.5, 0.2), (0.8, 0.8), (0.2, 0.8))]
        getattr(ImageDraw.Draw(picture), name)(corners if name == "polygon" else box, fill=colour)
        yield picture


def pattern(kind: str, side: int, one: icons.Colour, other: icons.Colour) -> Image.Image:
    """Two colours mixed by a mask that is drawn here, without `icons`."""
    masks = {"plain": Image.new("L", (1, 1)), "striped": Image.new("L", (1, 8)), "checkered": Image.new("L", (6, 6))}
    mask = masks.get(kind, Image.linear_gradient("L"))
    if kind in ("striped", "checkered"):
        mask.putdata([255 * ((x + y) % 2) for y in range(mask.height) for x in range(mask.width)])
    how = Image.Resampling.BILINEAR if kind == "gradient" else Image.Resampling.NEAREST
    back, front = (Image.new("RGB", (side, side), colour) for colour in (one, other))
    return Image.composite(front, back, mask.resize((side, side), how))


def test_the_committed_file_is_small_and_knows_the_domain() -> None:
    with safe_open(classifier.FILE, "pt") as opened:
        assert {opened.get_tensor(key).dtype for key in opened.keys()} == {torch.float16}
        assert "train_classifier.py" in opened.metadata()["made_by"]
    assert classifier.FILE.stat().st_size < 2_500_000
    assert {head: tuple(names) for head, names in load().names.items()} == train_classifier.NAMES


def test_every_example_of_the_brand_is_judged_poster_on_plain_teal() -> None:
    verdicts = judge([picture for picture, _ in examples("style")])
    assert Counter((v.style, v.background, v.ground) for v in verdicts) == {("poster", "teal", "plain"): 16}


def test_the_product_is_in_no_brand_and_on_the_background_of_its_caption() -> None:
    pictures, captions = zip(*examples("product"), strict=True)
    for verdict, caption in zip(judge(pictures), captions, strict=True):
        assert caption.endswith(f"on a {verdict.background} background")
        assert verdict.style not in ("poster", "blueprint")


@pytest.mark.parametrize("colour", icons.COLOURS)
def test_the_background_is_the_colour_behind_a_shape(colour: str) -> None:
    ground = Image.new("RGB", (64, 64), icons.COLOURS[colour])
    assert [(v.background, v.ground) for v in judge(list(shapes(ground)))] == [(colour, "plain")] * 3


@pytest.mark.parametrize("kind", ["plain", *icons.PATTERNS])
def test_the_ground_is_the_pattern_behind_a_shape(kind: str) -> None:
    pairs = [("white", "blue"), ("red", "yellow"), ("black", "pink"), ("green", "purple")]
    grounds = [pattern(kind, 192, icons.COLOURS[one], icons.COLOURS[other]) for one, other in pairs]
    assert {v.ground for ground in grounds for v in judge(list(shapes(ground)))} == {kind}


def test_a_picture_enlarged_fourfold_has_the_same_verdict() -> None:
    small = [picture.resize((64, 64), Image.Resampling.BOX) for picture, _ in examples("style")]
    large = [picture.resize((256, 256), Image.Resampling.NEAREST) for picture in small]
    assert judge(small) == judge(large)


def test_a_larger_picture_is_averaged_not_sampled() -> None:
    finest = Image.fromarray((np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8))
    torch.testing.assert_close(classifier.pixels([finest]), torch.zeros(1, 3, 64, 64), rtol=0, atol=0.005)


def test_a_picture_has_the_same_verdict_alone_and_among_others() -> None:
    pictures = [picture for picture, _ in examples("style")[:4]]
    for alone, among in zip((judge([picture])[0] for picture in pictures), judge(pictures), strict=True):
        assert alone[:4] == among[:4]
        assert alone.scores == pytest.approx(among.scores, abs=1e-4)


def test_objects_are_ranked_by_their_scores_and_styles_share_one() -> None:
    for verdict in judge([picture for picture, _ in examples("style")]):
        ranked = [verdict.scores[name] for name in verdict.objects]
        assert ranked == sorted(ranked, reverse=True) and verdict.object == verdict.objects[0]
        assert sorted(verdict.objects) == sorted(icons.OBJECTS)
        chances = {style: verdict.scores[style] for style in train_classifier.NAMES["style"]}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert verdict.style == max(chances, key=lambda style: chances[style])


class Fixed(torch.nn.Module):
    """Says the same of every picture: the first two objects are shown, and nothing else is known."""

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        seen = [torch.zeros(len(pixels), len(names)) for names in train_classifier.NAMES.values()]
        seen[0] -= 6
        seen[0][:, :2] = 4
        return seen


def test_two_objects_may_both_be_certain() -> None:
    verdict = classifier.Classifier(Fixed(), train_classifier.NAMES).judge([Image.new("RGB", (64, 64))])[0]
    assert set(verdict.objects[:2]) == set(train_classifier.NAMES["objects"][:2])
    assert min(verdict.scores[name] for name in verdict.objects[:2]) > 0.98 and verdict.scores["poster"] == 0.25


def test_what_is_kept_is_what_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = classifier.Network([len(train_classifier.NAMES[head]) for head in classifier.HEADS])
    network(torch.randn(8, 3, 64, 64))  # moves the running means
    network = network.half().float()
    train_classifier.keep(network, tmp_path / "kept", {})
    pictures = [picture for picture, _ in examples("style")[:4]]
    kept = classifier.Classifier(network, train_classifier.NAMES)
    assert load(tmp_path / "kept").judge(pictures) == kept.judge(pictures)


def test_the_poster_has_the_colours_of_the_examples() -> None:
    poster = styles.BRANDS["poster"]
    for picture, _ in examples("style"):
        counts = sorted(picture.getcolors(1 << 16), reverse=True)
        assert {colour for _, colour in counts[:4]} == {poster.ground, poster.fill, poster.outline, poster.shadow}


@pytest.mark.parametrize("radius", [0, 0.7, 1, 2.9, 5])
def test_an_outline_reaches_its_radius_on_every_side(radius: float) -> None:
    mask = np.zeros((32, 40), bool)
    mask[tuple(np.random.default_rng(0).integers(6, 26, (2, 5)))] = True
    rows, columns = np.mgrid[0:32, 0:40]
    near = [(rows - y) ** 2 + (columns - x) ** 2 <= radius**2 for y, x in np.argwhere(mask)]
    np.testing.assert_array_equal(styles._grown(mask, radius), np.any(near, 0))


def test_a_random_brand_is_its_seeds_own_and_none_of_ours() -> None:
    assert styles.any_brand(3) == styles.any_brand(3) != styles.any_brand(4)
    assert not set(styles.BRANDS.values()) & {styles.any_brand(seed) for seed in range(200)}


@needs_font
def test_fresh_renders_are_judged_right() -> None:
    shown = [train_classifier.example("unseen", number) for number in range(400)]
    found = train_classifier.accuracy(load(), [Image.fromarray(one.pixels) for one in shown], shown)
    least = {"one": 0.95, "two": 0.9, "poster": 0.95, "background": 0.97, "ground": 0.97, "style": 0.96}
    assert {name: share for name, share in least.items() if found[name] < share} == {}


@needs_font
@pytest.mark.parametrize("brand", styles.BRANDS)
def test_a_stylised_object_lies_within_its_place_at_any_size(brand: str) -> None:
    for side in (0.3, 0.6, 1.0):
        shown = styles.stylised(icons.Placed("star", side, 0.5, 0.5), styles.BRANDS[brand], 128)
        covered = np.argwhere((shown != styles.BRANDS[brand].ground).any(2))
        assert shown.shape == (128, 128, 3)
        extent = int((covered.max(0) - covered.min(0) + 1).max())
        assert extent == pytest.approx(side * 128, abs=3)
    small = styles.stylised(icons.Placed("star", 0.6, 0.5, 0.5), styles.BRANDS[brand], 64)
    large = styles.stylised(icons.Placed("star", 0.6, 0.5, 0.5), styles.BRANDS[brand], 128)
    reduced = np.asarray(Image.fromarray(large).reduce(2), np.float64)
    assert np.abs(reduced - small).mean() < 3


@needs_font
@pytest.mark.parametrize("name", ["panda face", "mushroom", "soccer ball", "camera", "crown"])
def test_parts_of_a_stylised_object_are_as_light_as_the_emojis(name: str) -> None:
    bare = replace(styles.BRANDS["poster"], outline_width=0, shadow_shift=0)
    placed = icons.Placed(name, 0.75, 0.5, 0.5)
    white = icons.Ground("plain", ("white",), (0, 0, 0), turned=False)
    emoji = icons.render(icons.Scene((placed,), white, ""), 128) @ styles.LUMA
    flat = styles.stylised(placed, bare, 128)
    light, fill, dark = (emoji[(flat == colour).all(2)] for colour in (bare.light, bare.fill, bare.dark))
    assert len(fill) > 0 and len(light) + len(dark) > 0
    assert not len(light) or light.mean() > fill.mean() + 20
    assert not len(dark) or dark.mean() < fill.mean() - 20
