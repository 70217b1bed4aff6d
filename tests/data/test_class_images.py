"""Class images of a prior that a training image shows are named by `plan` and `check`, in the words of a leak."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.command import said
from support.scenes import as_jpeg, mirrored, scene, scenes

from finetune import recipe
from finetune.data.images.looks import measure_looks
from finetune.data.prepare import prepare
from finetune.data.quality.advice import class_image_lines
from finetune.data.quality.class_images import ClassLeak, class_leaks
from finetune.planning.plan import resolve_plan

WORDS = {"trigger": "sks", "class_word": "mug"}
LEAKS = [ClassLeak("copy.jpg", "0.png", False), ClassLeak("turned.png", "1.png", True)]
SAID = (
    "2 class images that a training one shows: copy.jpg (like the training 0.png), turned.png (the training 1.png "
    "mirrored): the class word is taught the product, too; leave them out"
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return scenes(tmp_path / "photos", 4)


@pytest.fixture
def mugs(tmp_path: Path) -> Path:
    """Four other mugs, and two pictures of the product, recompressed and mirrored."""
    folder = tmp_path / "mugs"
    folder.mkdir()
    for i in range(20, 24):
        scene(i).save(folder / f"{i}.png")
    as_jpeg(scene(0).resize((120, 120)), 60).save(folder / "copy.jpg")
    mirrored(scene(1)).save(folder / "turned.png")
    return folder


def notices(data: Path, mugs: Path) -> list[str]:
    sets = (f"data.path={data}", f"prior.path={mugs}", "prior.mode=images", "data.class_word=mug", "data.trigger=sks")
    return [one for one in resolve_plan(recipe.load(Path("pocket-product"), sets)).notices if "class image" in one]


@pytest.mark.parametrize("prepared", [False, True], ids=["photos", "a dataset of which headers are read"])
def test_plan_names_class_images_that_a_training_image_shows(
    photos: Path, mugs: Path, prepared: bool, tmp_path: Path
) -> None:
    data = prepare(photos, tmp_path / "data", **WORDS).root if prepared else photos
    wanted = SAID.replace("0.png", "images/0.png").replace("1.png", "images/1.png") if prepared else SAID
    assert notices(data, mugs) == [f"prior: {wanted}"]
    for name in ("copy.jpg", "turned.png"):
        (mugs / name).unlink()
    assert notices(data, mugs) == []


def test_a_class_image_that_a_held_out_image_shows_is_named_too(photos: Path, mugs: Path, tmp_path: Path) -> None:
    data = prepare(photos, tmp_path / "data", **WORDS).root
    table = data / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[0]["split"] = "validation"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "copy.jpg (like the training images/0.png)" in str(notices(data, mugs))


def test_check_compares_with_class_images_where_they_are_named(
    capsys: pytest.CaptureFixture[str], photos: Path, mugs: Path
) -> None:
    check = ("check", photos, "--trigger", "sks", "--class-word", "mug")
    assert "class image" not in said(capsys, *check)[1]
    code, out, _ = said(capsys, *check, "--class-images", mugs)
    assert code == 0 and f"audit    {SAID}" in out
    found = json.loads(said(capsys, *check, "--class-images", mugs, "--json")[1])
    assert found["class_images"] == [one._asdict() for one in LEAKS] and SAID in found["audit"]
    few = ("--class-images", mugs, "--threshold", "similar=0")
    assert "copy.jpg" not in str(json.loads(said(capsys, *check, *few, "--json")[1])["class_images"])
    code, _, error = said(capsys, *check, "--class-images", mugs / "none")
    assert code == 2 and "no folder" in error


def packed(**images: Image.Image) -> dict[str, bytes]:
    return {name: measure_looks(image) for name, image in images.items()}


def test_a_class_image_is_compared_with_the_training_images_only() -> None:
    """Though the class images have a nearer copy among them, and training images are alike."""
    one = scene(0)
    training = packed(a=as_jpeg(one, 40), b=one, other=scene(1))
    assert class_leaks(training, packed(c=one, d=one, e=scene(2))) == (
        ClassLeak("c", "b", False), ClassLeak("d", "b", False),
    )  # fmt: skip
    assert class_leaks({}, packed(c=one)) == class_leaks(training, {}) == ()


def test_one_class_image_is_said_of_one() -> None:
    (line,) = class_image_lines(LEAKS[:1])
    assert line.startswith("1 class image that a training one shows: copy.jpg (like the training 0.png): ")
    assert class_image_lines([]) == []


def test_looks_that_are_known_are_not_measured_again(
    photos: Path, mugs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.data import record

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "SETTLED_NS", -(10**10))
    data = prepare(photos, tmp_path / "data", **WORDS).root
    first = notices(data, mugs)
    monkeypatch.setattr("finetune.data.images.decode.measure_looks", lambda image: pytest.fail("measured"))
    assert notices(data, mugs) == first and len(first) == 1
