"""Labelled grids, and pictures that carry what they were made from."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from finetune import resources as shipped
from finetune.sampling import folder, grid
from finetune.sampling.png import write_png
from finetune.sampling.request import SampleRequest, SampleSet


def test_a_png_carries_its_whole_recipe(tmp_path):
    facts = {**SampleRequest("a café, 中", 7, "blurry", 9, 3.5, 64, 96).described(), "base": "pocket", "nothing": ""}
    write_png(Image.new("RGB", (64, 96)), tmp_path / "new" / "a.png", facts)
    with Image.open(tmp_path / "new" / "a.png") as image:
        text = image.text
    assert {k: text[k] for k in facts} == facts
    assert text["parameters"].startswith("a café, 中\nNegative prompt: blurry\nseed: 7, steps: 9, guidance: 3.5, ")
    assert "nothing" not in text["parameters"] and text["parameters"].endswith("base: pocket")


def test_the_labels_of_a_sheet_fit_beside_and_above_their_pictures():
    prompt = "a very long prompt about a cup " * 6 + "x" * 90
    rows = [("base", [Image.new("RGB", (64, 64), "red")] * 3), ("n" * 80, [Image.new("RGB", (64, 32), "blue")] * 3)]
    page = np.asarray(grid.grid(rows, [prompt, "short", ""]))
    is_text = (page < 128).all(axis=2)  # the labels are nearly black
    left = page.shape[1] - 3 * (grid.SHOWN_PX + 8)
    red, blue = (page == (255, 0, 0)).all(axis=2), (page == (0, 0, 255)).all(axis=2)
    assert red.sum() >= 3 * 180**2 and blue.sum() >= 3 * 180 * 90
    top = np.argwhere(red).min(axis=0)
    assert is_text[: top[0], left : left + grid.SHOWN_PX].any(), "the first prompt is above the first picture"
    assert not is_text[: top[0], left + grid.SHOWN_PX : left + grid.SHOWN_PX + 8].any(), "and ends where it ends"
    assert not is_text[top[0] :, left:].any(), "no label runs into a picture"
    assert is_text[top[0] :, :left].any() and left < 250
    font = ImageFont.load_default(13)
    lines = grid._wrap(prompt, font, 192)
    assert all(font.getlength(line) <= 192 for line in lines) and "".join("".join(lines).split()) == "".join(
        prompt.split()
    )


COLOURS = [(40 + 20 * n, 0, 255 - 20 * n) for n in range(10)]


def where(page: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(left, top) of each picture of that one colour."""
    found = (np.asarray(page) == colour).all(axis=2)
    corner = found & ~np.roll(found, 1, axis=0) & ~np.roll(found, 1, axis=1)
    return [(int(x), int(y)) for y, x in np.argwhere(corner)]


@pytest.mark.parametrize("count, side, most", [(1, 64, 600), (7, 64, 1600), (10, 64, 1200), (40, 64, 1600),
                                               (6, 1024, 1600)])  # fmt: skip
def test_a_sheet_stays_readable_whatever_the_number_of_pictures(count, side, most):
    one = Image.new("RGB", (side, side), "red")
    page = grid.grid([("base model", [one] * count), ("with mug.safetensors", [one] * count)], ["a cup"] * count, "mug")
    assert page.width <= most and page.height <= 2700
    assert len(where(page, (255, 0, 0))) == 2 * count


def test_columns_go_on_in_bands_with_all_rows_under_each_other():
    pictures = [Image.new("RGB", (64, 64), colour) for colour in COLOURS]
    page = grid.grid([("base model", pictures), ("with mug.safetensors", pictures)], [f"p{n}" for n in range(10)])
    places = [where(page, colour) for colour in COLOURS]
    for (left, top), (under_left, under_top) in places:
        assert left == under_left and under_top - top == grid.SHOWN_PX + 8
    assert [spots[0][0] for spots in places[:5]] == [spots[0][0] for spots in places[5:]], "five of ten in each band"
    assert places[5][0][1] > places[0][1][1] + grid.SHOWN_PX


def test_a_sheet_says_above_the_pictures_what_it_is():
    row = [("base model", [Image.new("RGB", (64, 64), "red")])]
    plain, titled = (grid.grid(row, ["a cup"], *head) for head in ((), ("mug.safetensors, step 400", "pocket " * 30)))
    [(_, first)], [(_, moved)] = where(plain, (255, 0, 0)), where(titled, (255, 0, 0))
    text = (np.asarray(titled)[: moved - first] < 150).all(axis=2)
    assert moved > first + 80 and text[:38].any() and text[46:].any() and not text[:, -8:].any()
    assert titled.width <= 600


def test_more_seeds_than_prompts_stand_beside_each_other_with_the_prompt_on_their_left():
    wanted = SampleSet(["a cup"], seed=3, count=10)
    pictures = {(0, 3 + n): Image.new("RGB", (64, 64), colour) for n, colour in enumerate(COLOURS)}
    page = folder._sheet(wanted, pictures, [], "pocket")
    places = [where(page, colour)[0] for colour in COLOURS]
    assert page.width > page.height and sorted(places, key=lambda place: place[::-1]) == places, "seeds in order"
    assert len({top for _, top in places}) == 2, "two bands of five; not a column of ten"


def test_a_path_on_this_machine_is_not_published(tmp_path):
    (tmp_path / "sd15").mkdir()
    assert shipped.public_name(str(tmp_path / "sd15")) == "sd15" and shipped.public_name("org/model") == "org/model"
    assert shipped.public_name("pocket") == "pocket"
