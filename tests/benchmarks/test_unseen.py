"""The product and the style that nothing was tuned on: drawn the same every time, prepared without a flaw."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import unseen
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune import resources as shipped
from finetune.data import dataset
from finetune.data.audit import audit
from finetune.data.example import Dataset, Example


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Dataset:
    return unseen.write_product(tmp_path_factory.mktemp("unseen") / "product")


@pytest.fixture(scope="module")
def style(tmp_path_factory) -> Dataset:
    if not unseen.icons.FONT.is_file():
        pytest.skip("no emoji font")
    return unseen.write_style(tmp_path_factory.mktemp("unseen") / "style")


def pixels(example: Example) -> np.ndarray:
    with Image.open(example.path) as image:
        assert image.mode == "RGB" and image.size == (256, 256)
        return np.asarray(image).astype(int)


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, count", [("product", 6), ("style", 16)])
def test_check_finds_nothing_wrong(request, name, count):
    made = request.getfixturevalue(name)
    found = audit(made.root)
    assert found.prepared and len(found.used) == found.seen == found.card.images == count
    assert not found.problems and not found.rejected and not found.notes and not found.card.changes
    said = CliRunner().invoke(cli.app, ["check", str(made.root), "--json"])
    assert said.exit_code == 0
    rows = json.loads(said.stdout)
    assert rows["seen"] == rows["used"] == count and rows["rejected"] == []


def test_drawn_again_every_file_is_the_same(product, tmp_path):
    again = unseen.write_product(tmp_path / "product")
    names = sorted(p.relative_to(product.root) for p in product.root.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again.root) for p in again.root.rglob("*") if p.is_file())
    assert [n for n in names if (product.root / n).read_bytes() != (again.root / n).read_bytes()] == []


# --- the product ----------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_product_is(product):
    assert (product.trigger, product.class_word, product.kind) == ("sks", "backpack", "product")
    assert product.license == "CC0-1.0" and product.source == "drawn by benchmarks/unseen.py"


def test_the_base_knows_the_class_and_the_colours_shown_and_held_out():
    shown = [view.background for view in unseen.VIEWS]
    assert unseen.CLASS in unseen.icons.OBJECTS
    assert sorted([*shown, *unseen.HELD_OUT_COLOURS]) == sorted(unseen.icons.COLOURS)


def test_the_picture_is_on_the_background_its_caption_names_and_touches_no_edge(product):
    assert [e.caption for e in product.examples] == [
        f"a sks backpack on {'an' if v.background == 'orange' else 'a'} {v.background} background" for v in unseen.VIEWS
    ]
    for example in product.examples:
        colour = unseen.icons.COLOURS[example.caption.split()[-2]]
        shown = pixels(example)
        frame = np.concatenate([shown[:6].reshape(-1, 3), shown[-6:].reshape(-1, 3),
                                shown[:, :6].reshape(-1, 3), shown[:, -6:].reshape(-1, 3)])  # fmt: skip
        assert (frame == colour).all(), example.caption


def test_it_is_the_same_backpack_in_all_six(product):
    wanted = [unseen.LIME, unseen.LIME_DARK, unseen.PINK, unseen.PINK_DARK, unseen.STRAP, unseen.BOLT, unseen.INK]
    for example in product.examples:
        counts = Counter(map(tuple, pixels(example).reshape(-1, 3)))
        assert min(counts[colour] for colour in wanted) > 200, example.caption
        its_own = counts.total() - counts[unseen.icons.COLOURS[example.caption.split()[-2]]]
        flat = sum(counts[colour] for colour in set(wanted) - {tuple(pixels(example)[0, 0])})
        assert flat > 0.85 * its_own, "the rest is smooth edges"


def test_the_six_views_differ():
    shown = [np.asarray(unseen.picture((128, 128, 128), unseen.backpack(v))).astype(int) for v in unseen.VIEWS]
    differ = [np.abs(a - b).mean() for a, b in combinations(shown, 2)]
    assert min(differ) > 10
    assert len({v.yaw for v in unseen.VIEWS}) == len({v.size for v in unseen.VIEWS}) == 6


def test_the_product_needs_no_font(monkeypatch, tmp_path, product):
    monkeypatch.setattr(unseen.icons, "FONT", tmp_path / "none.ttf")
    assert unseen.write_product(tmp_path / "product").fingerprint == product.fingerprint


# --- the style ------------------------------------------------------------------------------------------------------


def test_the_style_has_its_objects_and_others_to_test_with():
    shown, held_out = set(unseen.OBJECTS), set(unseen.HELD_OUT_OBJECTS)
    assert len(unseen.OBJECTS) == len(shown) == 16 and len(unseen.HELD_OUT_OBJECTS) == len(held_out) >= 20
    assert not shown & held_out and shown | held_out <= set(unseen.icons.OBJECTS)
    shipped_ones = [e.caption for e in dataset.read_dataset(shipped.EXAMPLES / "style").examples]
    tuned = {caption.removesuffix(", sks style").split(" ", 1)[1] for caption in shipped_ones}
    assert not (shown | held_out) & tuned, "the shipped recipe was tuned on these"


def test_the_style_says_what_it_shows_in_few_colours(style):
    assert (style.trigger, style.class_word, style.kind) == ("sks", None, "style")
    assert style.license == "OFL-1.1" and style.source == "Noto Color Emoji, restyled by benchmarks/unseen.py"
    assert [e.caption for e in style.examples] == [
        f"{'an' if name[0] in 'au' else 'a'} {name}, sks style" for name in unseen.OBJECTS
    ]
    counts = Counter(tuple(colour) for e in style.examples for colour in pixels(e).reshape(-1, 3))
    palette = dict(counts.most_common(3))
    assert sum(palette.values()) > 0.9 * counts.total(), "the rest is smooth edges"
    for example, name in zip(style.examples, unseen.OBJECTS, strict=True):
        shown = pixels(example)
        assert {tuple(shown[y, x]) for y in (0, -1) for x in (0, -1)} == {max(palette, key=palette.__getitem__)}
        assert (shown == np.asarray(unseen.styled(name))).all(), example.caption
