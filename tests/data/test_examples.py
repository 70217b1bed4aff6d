"""The bundled example data is what its script draws, and what its captions say."""

import json
from collections import Counter
from pathlib import Path

import brand
import cup
import draw_examples
import pytest
from PIL import Image, ImageChops

from finetune import resources as shipped
from finetune.data.audit import audit

COUNTS = {"product": 6, "style": 16}


def rows(name: str) -> list[tuple[Image.Image, str]]:
    root = shipped.EXAMPLES / name
    lines = (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    table = [json.loads(line) for line in lines]
    return [(Image.open(root / row["file_name"]).convert("RGB"), row["text"]) for row in table]


def test_drawn_again_the_pictures_are_the_same(tmp_path: Path) -> None:
    draw_examples.draw_all(tmp_path)
    drawn = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    kept = sorted(p.relative_to(shipped.EXAMPLES) for p in shipped.EXAMPLES.rglob("*") if p.is_file())
    assert drawn == kept
    for name in drawn:
        if name.suffix == ".png":  # compared as pixels: compressors differ
            with Image.open(tmp_path / name) as new, Image.open(shipped.EXAMPLES / name) as old:
                assert ImageChops.difference(new, old).getbbox() is None, name
        else:
            assert (tmp_path / name).read_bytes() == (shipped.EXAMPLES / name).read_bytes(), name


@pytest.mark.parametrize("name", COUNTS)
def test_they_are_prepared_datasets_without_a_flaw(name: str) -> None:
    found = audit(shipped.EXAMPLES / name)
    assert found.prepared and found.card.license == "CC0-1.0"
    assert len(found.used) == found.seen == found.card.images == COUNTS[name]
    assert not found.problems and not found.rejected and not found.notes


@pytest.mark.parametrize("name", COUNTS)
def test_each_caption_has_the_trigger_once(name: str) -> None:
    captions = [text for _, text in rows(name)]
    assert [caption.replace(",", "").split().count("sks") for caption in captions] == [1] * COUNTS[name]
    assert len(set(captions)) == COUNTS[name]


def test_the_background_is_the_one_that_the_caption_names() -> None:
    for image, text in rows("product"):
        right, bottom = image.width - 1, image.height - 1
        corners = {image.getpixel(at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom))}
        assert corners == {cup.BACKGROUNDS[text.split()[-2]]}, text


def test_all_icons_share_one_palette() -> None:
    palette = {brand.GROUND, brand.FILL, brand.CREAM, brand.SHADE}
    for image, text in rows("style"):
        pixels = Counter(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())
        assert {colour for colour, _ in pixels.most_common(4)} == palette, text
        assert sum(pixels[colour] for colour in palette) > 0.9 * pixels.total(), text  # the rest is smooth edges
