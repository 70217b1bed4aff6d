"""Masks: what is none is a sentence, what is one lands where its picture lands, to the latent cell."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from support.nasty_folder import picture
from torch.testing import assert_close

from finetune.data.audit import audit
from finetune.data.dataset import read_dataset
from finetune.data.images import decode
from finetune.data.images.buckets import Bucket, Size, fit, window
from finetune.data.masks import COVERS_LITTLE, COVERS_MOST, SCALED, TURNED, WHOLE, mask_cells, open_mask
from finetune.data.prepare import prepare
from finetune.encoding.images import PLACES
from finetune.errors import DataError

WORDS = {"trigger": "sks", "class_word": "mug"}
CELL = 8


def disc(size: tuple[int, int], box: tuple[float, float, float, float], fill: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=fill)
    return mask


def folder(root: Path, mask: Image.Image, size: tuple[int, int] = (96, 64), name: str = "0-mask.png") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    picture(1, size).save(root / "0.png")
    picture(2, size).save(root / "1.png")
    (root / name).parent.mkdir(exist_ok=True)
    mask.save(root / name)
    return root


# --- what is no mask -------------------------------------------------------------------------------------------------

GOOD = disc((96, 64), (20, 10, 60, 50))
FAULTS = {
    "another shape": (GOOD.resize((64, 64)), "0-mask.png has 64 x 64 px, but 0.png has 96 x 64: the shapes differ"),
    "turned": (GOOD.rotate(90, expand=True), "has 64 x 96 px, but 0.png has 96 x 64"),
    "empty": (Image.new("L", (96, 64)), "0-mask.png, the mask of 0.png, is black everywhere"),
    "nearly empty": (Image.new("L", (96, 64), 9), "is black everywhere"),
    "in colour": (picture(3, (96, 64)), "is in colour; save it in greyscale"),
    "transparent": (Image.merge("LA", (GOOD, GOOD)), "is transparent in parts"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_no_mask_is_a_sentence_and_nothing_is_trained_without_it(kind: str, tmp_path: Path) -> None:
    mask, said = FAULTS[kind]
    root = folder(tmp_path / "raw", mask)
    report = audit(root, **WORDS)
    (problem,) = report.problems
    assert said in problem and report.masks == 1 and report.files == report.seen + 1
    with pytest.raises(DataError, match="0-mask"):
        prepare(root, tmp_path / "out", **WORDS)
    assert not (tmp_path / "out").exists()


def test_a_mask_that_cannot_be_decoded_is_a_sentence(tmp_path: Path) -> None:
    root = folder(tmp_path, GOOD)
    (root / "0-mask.png").write_bytes((root / "0-mask.png").read_bytes()[:-40])
    (problem,) = audit(root, **WORDS).problems
    assert problem.startswith("0-mask.png, the mask of 0.png, cannot be used: truncated")
    (root / "0-mask.png").write_bytes(b"")
    (problem,) = audit(root, **WORDS).problems
    assert problem.startswith("0-mask.png, the mask of 0.png: zero bytes")


UNDERSTOOD = {
    "grey": GOOD,
    "one bit": GOOD.convert("1"),
    "RGB": GOOD.convert("RGB"),
    "a palette": GOOD.convert("P"),
    "opaque": GOOD.convert("RGBA"),
    "16 bits": Image.fromarray(np.asarray(GOOD).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_masks_in_any_grey_mode_are_one_lossless_grey_png(kind: str, tmp_path: Path) -> None:
    made = prepare(folder(tmp_path / "raw", UNDERSTOOD[kind]), tmp_path / "out", **WORDS)
    (mask,) = [e.mask for e in made.examples if e.mask]
    assert mask.path == tmp_path / "out/masks/0.png"
    with Image.open(mask.path) as kept:
        assert (kept.mode, kept.format) == ("L", "PNG")
        assert kept.tobytes() == GOOD.tobytes()


def test_a_mask_of_another_size_and_a_whole_one_are_used_and_said(tmp_path: Path) -> None:
    report = audit(folder(tmp_path / "a", GOOD.resize((48, 32))), **WORDS)
    assert not report.problems and ("0.png", SCALED) in report.notes
    odd = audit(folder(tmp_path / "b", GOOD.resize((33, 22)), (96, 63)), **WORDS)  # rounded to whole pixels
    assert not odd.problems
    whole = audit(folder(tmp_path / "c", Image.new("L", (96, 64), 255)), **WORDS)
    assert not whole.problems and ("0.png", WHOLE) in whole.notes


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((40, 30, 46, 36), COVERS_LITTLE),
        ((40, 30, 49, 39), ""),
        ((0, 0, 96, 60), ""),
        ((0, 0, 96, 62), COVERS_MOST),
    ],
)
def test_a_mask_of_hardly_anything_or_nearly_everything_is_remarked_on(
    box: tuple[int, int, int, int], said: str, tmp_path: Path
) -> None:
    """0.6 % and 1.3 %, 94 % and 97 % of the picture."""
    mask = Image.new("L", (96, 64))
    mask.paste(255, box)
    report = audit(folder(tmp_path, mask), **WORDS)
    assert not report.problems and report.masked == 1
    assert {note.text for note in report.notes if "mask" in note.text} == ({said} if said else set())


def test_the_exif_of_a_mask_turns_the_mask_alone(tmp_path: Path) -> None:
    """As of one that a phone's editor drew: it is read upright, and lies on its upright picture."""
    root, exif = folder(tmp_path / "raw", GOOD), Image.Exif()
    exif[0x0112] = 6
    (root / "0-mask.png").unlink()
    GOOD.transpose(Image.Transpose.ROTATE_90).save(root / "0-mask.png", exif=exif)
    report = audit(root, **WORDS)
    assert not report.problems and not {SCALED, TURNED} & {note.text for note in report.notes}
    (mask,) = [e.mask for e in prepare(root, tmp_path / "out", **WORDS).examples if e.mask]
    assert np.asarray(open_mask(mask)).tobytes() == np.asarray(GOOD).tobytes()
    both = turned_folder(tmp_path / "both", 6, Image.new("L", (1, 1)), (64, 64))
    (both / "0-mask.png").unlink()
    disc((64, 64), (4, 4, 20, 20)).transpose(Image.Transpose.ROTATE_90).save(both / "0-mask.png", exif=exif)
    report = audit(both, **WORDS)
    assert not report.problems and ("0.jpg", TURNED) not in report.notes, "a square one is upright by its own EXIF"


# --- upright ---------------------------------------------------------------------------------------------------------


def turned_folder(root: Path, orientation: int, mask: Image.Image, size: tuple[int, int] = (96, 64)) -> Path:
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(1, size).save(root / "0.jpg", exif=exif)
    mask.save(root / "0-mask.png")
    return root


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_before_the_exif_rotation_is_turned_with_its_picture(orientation: int, tmp_path: Path) -> None:
    """And one drawn after it is not: the shapes tell."""
    before = GOOD
    upright = decode.upright(before, orientation)
    for name, mask, said in (("before", before, True), ("after", upright, False)):
        root = turned_folder(tmp_path / name, orientation, mask)
        report = audit(root, **WORDS)
        assert not report.problems and (("0.jpg", TURNED) in report.notes) == said
        made = prepare(root, tmp_path / f"{name} out", **WORDS)
        (example,) = made.examples
        assert example.mask and example.size == Size(64, 96) == example.mask.size
        assert np.asarray(open_mask(example.mask)).tobytes() == np.asarray(upright).tobytes()
        (raw,) = read_dataset(root, **WORDS).examples
        assert raw.mask and np.asarray(open_mask(raw.mask)).tobytes() == np.asarray(upright).tobytes()


@pytest.mark.parametrize(("orientation", "size"), [(2, (96, 64)), (3, (96, 64)), (4, (96, 64)), (6, (64, 64))])
def test_where_the_shapes_cannot_tell_it_is_asked(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    root = turned_folder(tmp_path / "raw", orientation, disc(size, (4, 4, 20, 20)), size)
    (problem,) = audit(root, **WORDS).problems
    assert f"both before and after the EXIF rotation (orientation {orientation})" in problem


# --- prepared --------------------------------------------------------------------------------------------------------


def test_a_prepared_dataset_keeps_masks_and_a_mask_is_part_of_what_it_is(tmp_path: Path) -> None:
    plain = prepare(folder(tmp_path / "raw", GOOD), tmp_path / "a", **WORDS)
    rows = [json.loads(line) for line in (tmp_path / "a/metadata.jsonl").read_text().splitlines()]
    assert [row.get("mask_file_name") for row in rows] == ["masks/0.png", None]
    again = read_dataset(tmp_path / "a")
    assert again.fingerprint == plain.fingerprint and again.masked == 1
    report = audit(tmp_path / "a")
    assert (report.masks, report.masked, report.files) == (1, 1, report.seen + report.captions + 1)
    other = prepare(folder(tmp_path / "raw2", GOOD.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), tmp_path / "b", **WORDS)
    (tmp_path / "raw2/0-mask.png").unlink()
    none = prepare(tmp_path / "raw2", tmp_path / "c", **WORDS)
    assert len({plain.fingerprint, other.fingerprint, none.fingerprint}) == 3 and none.masked == 0
    twice = prepare(tmp_path / "a", tmp_path / "d", **WORDS)
    assert twice.fingerprint == plain.fingerprint


def test_datasets_gives_the_mask_beside_the_image(tmp_path: Path) -> None:
    import datasets

    prepare(folder(tmp_path / "raw", GOOD), tmp_path / "out", **WORDS)
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 2 and {"image", "text", "mask"} <= set(rows.column_names)
    assert [row["mask"] and row["mask"].tobytes() for row in rows] == [GOOD.tobytes(), None]


def test_pictures_of_one_name_keep_a_mask_each(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    folder(root, GOOD)
    picture(7, (96, 64)).save(root / "0.jpg")
    made = prepare(root, tmp_path / "out", **WORDS)
    masks = {e.name: e.mask.path.name for e in made.examples if e.mask}
    assert masks == {"images/0.jpg": "0.png", "images/0.png": "0-2.png"} or masks == {
        "images/0.png": "0.png", "images/0.jpg": "0-2.png"
    }  # fmt: skip
    assert not audit(tmp_path / "out").problems


def test_a_mask_changed_by_hand_is_another_dataset_and_a_broken_one_is_said(tmp_path: Path) -> None:
    before = prepare(folder(tmp_path / "raw", GOOD), tmp_path / "a", **WORDS).fingerprint
    disc((96, 64), (0, 0, 90, 60)).save(tmp_path / "a/masks/0.png")
    assert read_dataset(tmp_path / "a").fingerprint != before
    (tmp_path / "a/masks/0.png").unlink()
    with pytest.raises(DataError, match=r"the mask masks/0.png of images/0.png does not exist"):
        read_dataset(tmp_path / "a")


def test_transparency_becomes_the_mask_when_asked_and_only_then(tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", GOOD, name="1-mask.png")
    shown = picture(1, (96, 64))
    shown.putalpha(GOOD)
    shown.save(root / "0.png")
    assert [e.mask is not None for e in prepare(root, tmp_path / "a", **WORDS).examples] == [False, True]
    made = prepare(root, tmp_path / "b", mask_from="alpha", **WORDS)
    first = made.examples[0].mask
    assert made.masked == 2 and first and np.asarray(open_mask(first)).tobytes() == GOOD.tobytes()


def test_transparency_that_makes_no_mask_is_a_sentence(tmp_path: Path) -> None:
    root = folder(tmp_path / "opaque", GOOD)
    with pytest.raises(DataError, match="`mask_from` is alpha, but no image is transparent") as refused:
        prepare(root, tmp_path / "out", mask_from="alpha", **WORDS)
    assert refused.value.hint == "leave `mask_from` out" and refused.value.action is None  # a check knows nothing of it
    shown = picture(1, (96, 64))
    shown.putalpha(GOOD)
    shown.save(root / "0.png")
    with pytest.raises(DataError, match=r"two masks for one image, .*: 0.png and 0-mask.png"):
        prepare(root, tmp_path / "out", mask_from="alpha", **WORDS)
    (root / "0-mask.png").unlink()
    shown.putalpha(0)
    shown.save(root / "0.png")
    with pytest.raises(DataError, match=r"0.png is wholly transparent"):
        prepare(root, tmp_path / "out", mask_from="alpha", **WORDS)
    assert not (tmp_path / "out").exists()


# --- cells -----------------------------------------------------------------------------------------------------------

SIDES = st.integers(4, 40).map(lambda n: n * CELL)


def by_pixels(mask: Image.Image, bucket: Bucket, place: float, flip: bool) -> np.ndarray:
    """What of each cell is white, where the mask is cut as its picture is: at sixteen times the size, by the box."""
    scale = 4
    large = Bucket(bucket.width * scale, bucket.height * scale)
    cut = mask.resize(large, Image.Resampling.NEAREST, box=window(Size(*mask.size), bucket, place))
    cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut
    cells = np.asarray(cut, np.float64).reshape(bucket.height // CELL, CELL * scale, bucket.width // CELL, CELL * scale)
    return cells.mean((1, 3)) / 255


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mask_lands_where_the_same_shape_lands_in_the_picture(data: st.DataObject) -> None:
    """Under any crop and flip, to the latent cell: the picture is the shape itself, cut as training cuts it."""
    size = data.draw(st.tuples(st.integers(40, 400), st.integers(40, 400)))
    bucket = Bucket(data.draw(SIDES), data.draw(SIDES))
    place, flip = data.draw(st.sampled_from(PLACES)), data.draw(st.booleans())
    left, top = data.draw(st.integers(0, size[0] - 20)), data.draw(st.integers(0, size[1] - 20))
    right, bottom = data.draw(st.integers(left + 16, size[0])), data.draw(st.integers(top + 16, size[1]))
    shape = disc(size, (left, top, right, bottom))
    cells = mask_cells(shape, Size(*size), bucket, place, flip, (bucket.height // CELL, bucket.width // CELL))
    assert cells.dtype == np.float32 and cells.min() >= -1e-6 and cells.max() <= 1 + 1e-6
    shown = np.asarray(fit(shape.convert("RGB"), bucket, place, flip), np.float64)[..., 0] / 255
    seen = shown.reshape(bucket.height // CELL, CELL, bucket.width // CELL, CELL).mean((1, 3))
    assert np.abs(cells - seen).mean() < 0.02  # the picture is smoothed, the mask is not
    inside, outside = by_pixels(shape, bucket, place, flip) > 0.999, by_pixels(shape, bucket, place, flip) < 0.001
    assert (cells[inside] > 0.98).all() and (cells[outside] < 0.02).all()


def test_flip_mirrors_and_the_place_moves() -> None:
    shape, size, bucket = disc((160, 64), (0, 0, 40, 40)), Size(160, 64), Bucket(64, 64)
    at = {place: mask_cells(shape, size, bucket, place, False, (8, 8)) for place in PLACES}
    assert_close(mask_cells(shape, size, bucket, 0.0, True, (8, 8)), at[0.0][:, ::-1].copy())
    assert at[0.0].sum() > at[0.25].sum() > at[0.5].sum() == at[1.0].sum() == 0


def test_a_scaled_mask_gives_the_cells_of_the_large_one() -> None:
    large = Image.fromarray(
        np.kron(np.random.default_rng(0).integers(0, 2, (16, 24)) * 255, np.ones((8, 8))).astype("u1")
    )
    small = large.resize((24, 16), Image.Resampling.NEAREST)
    for place, flip in ((0.0, False), (0.75, True)):
        cut = [mask_cells(m, Size(192, 128), Bucket(64, 64), place, flip, (8, 8)) for m in (large, small)]
        assert_close(cut[0], cut[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("edge", [np.s_[-1], np.s_[:, -1]])
def test_a_scaled_mask_of_rounded_sides_reaches_from_edge_to_edge(edge: object) -> None:
    """33 x 22 px for 96 x 63: across and down it is scaled by different numbers."""
    pixels = np.zeros((22, 33), np.uint8)
    pixels[edge] = 255  # type: ignore[index]
    cells = mask_cells(Image.fromarray(pixels), Size(96, 63), Bucket(96, 63), 0.5, False, (7, 12))
    assert cells.mean() == pytest.approx(pixels.mean() / 255, rel=1e-6)


def test_t24_cells_are_areas_not_samples() -> None:
    """A stripe one pixel wide, which nearest sampling either misses or takes for whole cells, is an eighth of them; and
    where cells cut pixels, each pixel counts by what is inside."""
    stripe = np.zeros((64, 64), np.uint8)
    stripe[:, 20] = 255
    cells = mask_cells(Image.fromarray(stripe), Size(64, 64), Bucket(64, 64), 0.5, False, (8, 8))
    assert_close(cells[:, 2], np.full(8, 1 / 8, np.float32)) and not cells[:, [0, 1, 3, 4, 5, 6, 7]].any()
    ramp = np.repeat(np.arange(5, dtype=np.uint8)[None] * 50, 5, 0)
    cut = mask_cells(Image.fromarray(ramp), Size(5, 5), Bucket(16, 16), 0.5, False, (2, 2)) * 255
    assert_close(cut[0], np.array([(0 + 50 + 0.5 * 100) / 2.5, (0.5 * 100 + 150 + 200) / 2.5], np.float32))
