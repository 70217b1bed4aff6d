"""Labelled grids, and pictures that carry what they were made from."""

import numpy as np
from PIL import Image, ImageFont

from finetune import resources as shipped
from finetune.sampling import grid
from finetune.sampling.png import write_png
from finetune.sampling.request import SampleRequest


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
    is_text = (page < 128).all(axis=2)
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


def test_a_path_on_this_machine_is_not_published(tmp_path):
    (tmp_path / "sd15").mkdir()
    assert shipped.public_name(str(tmp_path / "sd15")) == "sd15" and shipped.public_name("org/model") == "org/model"
    assert shipped.public_name("pocket") == "pocket"
