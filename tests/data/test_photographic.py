"""Photographs are told from drawings by their texture; the pocket base's judge knows drawings only."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from support.photos import photograph

from finetune.data.dataset import read_dataset
from finetune.data.photographic import are_photographs, texture
from finetune.data.prepare import prepare
from finetune.errors import DataError

SIDE_PX = 96


def drawing(ground: str = "gray") -> Image.Image:
    """A flat lamp with an outline."""
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), ground)
    pen = ImageDraw.Draw(picture)
    pen.polygon([(34, 20), (62, 20), (76, 50), (20, 50)], "gold", "black", 3)
    pen.rectangle((45, 50, 51, 80), "black")
    return picture


def dataset(folder: Path, pictures: list[Image.Image], mask: Image.Image | None = None) -> Path:
    raw = folder / "raw"
    raw.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(raw / f"IMG_{number:04d}.png")
        if mask:
            mask.save(raw / f"IMG_{number:04d}-mask.png")
    prepare(raw, folder / "made", trigger="sks", class_word="lamp")
    return folder / "made"


def test_a_drawing_is_flat_or_an_edge_and_a_photograph_neither():
    assert texture(drawing()) < 0.15 and texture(photograph(0)) > 0.3


def test_shading_counts_whichever_way_it_runs():
    shaded = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    assert texture(shaded) > 0.9 and texture(shaded.transpose(Image.Transpose.ROTATE_90)) > 0.9


@pytest.mark.parametrize(
    "pictures, photographs",
    [
        ([drawing(c) for c in ("gray", "red", "blue")], False),
        ([photograph(n) for n in range(3)], True),
        ([photograph(0), drawing("red"), drawing("blue")], False),
        ([photograph(0), photograph(1), drawing("blue")], True),
    ],
    ids=["drawings", "photographs", "one photograph", "one drawing"],
)
def test_most_pictures_decide(pictures: list[Image.Image], photographs: bool, tmp_path: Path):
    assert are_photographs(read_dataset(dataset(tmp_path, pictures)).examples) is photographs


def test_of_many_pictures_some_are_looked_at_from_the_first_to_the_last(tmp_path: Path):
    many = [*(drawing(f"#{100 + n:02x}8080") for n in range(8)), *(photograph(n) for n in range(12))]
    assert are_photographs(read_dataset(dataset(tmp_path, many)).examples)


def test_a_photograph_in_half_of_a_picture_is_enough(tmp_path: Path):
    halved = drawing()
    halved.paste(photograph(0).crop((0, 0, SIDE_PX, SIDE_PX // 2)), (0, SIDE_PX // 2))
    assert 0.2 < texture(halved) < 0.5
    assert are_photographs(read_dataset(dataset(tmp_path, [halved])).examples)


def test_a_picture_that_was_changed_since_it_was_read_is_refused(tmp_path: Path):
    found = read_dataset(dataset(tmp_path, [drawing()]))
    photograph(0).save(found.examples[0].path)
    with pytest.raises(DataError, match="changed"):
        are_photographs(found.examples)


def test_a_mask_changes_nothing_as_outlines_are_most_of_what_it_leaves(tmp_path: Path):
    mask = Image.new("L", (SIDE_PX, SIDE_PX))
    ImageDraw.Draw(mask).polygon([(32, 18), (64, 18), (78, 52), (18, 52)], 255)
    assert not are_photographs(read_dataset(dataset(tmp_path, [drawing(), drawing("red")], mask)).examples)


def test_the_bundled_examples_are_drawings():
    for name in ("product", "style"):
        examples = read_dataset(Path(__file__).parents[2] / "data" / "examples" / name).examples
        assert not are_photographs(examples)
