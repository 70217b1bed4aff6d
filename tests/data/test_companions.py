"""Pictures that only accompany others: each convention is understood, and what is not is a problem with a sentence."""

import json
from collections.abc import Collection
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from support.nasty_folder import picture
from typer.testing import CliRunner

from finetune import cli
from finetune.data.audit import Audit, audit
from finetune.data.companions import Companions, find_companions


def companions(*names: str, colour: Collection[str] = (), captioned: Collection[str] = (), **named: str) -> Companions:
    return find_companions(names, named, captioned, (), lambda name: name not in colour)


CONVENTIONS = {
    "OneTrainer": ("a.jpg", "a-masklabel.png"),
    "OneTrainer, in a folder": ("mug/a.webp", "mug/a-masklabel.png"),
    "fal": ("a.jpg", "a_mask.jpg"),
    "tools": ("a.jpg", "a-mask.png"),
    "capitals": ("a.jpg", "a-Mask.PNG"),
    "cloneofsimo": ("0.src.jpg", "0.mask.png"),
    "a folder beside the pictures": ("a.jpg", "masks/a.png"),
    "a folder beside theirs": ("images/a.jpg", "masks/a.png"),
    "a folder beside theirs, deeper": ("images/b/a.jpg", "masks/b/a.png"),
    "a folder in theirs": ("images/a.jpg", "images/mask/a.png"),
    "kohya": ("zunda/a.jpg", "zunda_mask/a.png"),
    "kohya, of two": ("zunda/a.jpg", "zunda_mask/a.png", "other/a.jpg"),
    "both at once": ("a.jpg", "masks/a-mask.png"),
}


@pytest.mark.parametrize("kind", CONVENTIONS)
def test_a_mask_is_told_by_every_convention(kind: str) -> None:
    picture, mask, *others = CONVENTIONS[kind]
    found = companions(picture, mask, *others)
    assert found.masks == {picture: mask} and found.files == {mask} and not found.rejected + found.problems


CONTROLS = {
    "OneTrainer": ("a.jpg", "a-condlabel.png"),
    "StableTuner": ("a.jpg", "a-depth.png"),
    "ai-toolkit": ("mug/a.jpg", "control/a.png"),
    "musubi-tuner": ("images/a.jpg", "images_control/a_0.png"),
    "diffusers": ("a.jpg", "conditioning_images/a.jpg"),
    "SimpleTuner": ("images/a.jpg", "conditioning/a.png"),
}


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_control_picture_is_no_subject_and_is_rejected_with_what_it_accompanies(kind: str) -> None:
    picture, control = CONTROLS[kind]
    found = companions(picture, control)
    assert found.masks == {} and found.files == {control}
    (one,) = found.rejected
    assert (one.file, one.reason) == (control, "control picture") and f"belongs to {picture}" in one.detail


SUBJECTS = {
    "a mask in colour": (("gas-mask.jpg", "b.jpg"), {"colour": {"gas-mask.jpg"}}),
    "a captioned one": (("gas-mask.jpg", "b.jpg"), {"captioned": {"gas-mask.jpg"}}),
    "a folder of masks in colour": (("masks/venice.jpg", "b.jpg"), {"colour": {"masks/venice.jpg"}}),
    "a depth without a picture": (("sea-depth.jpg", "b.jpg"), {}),
    "a remote control": (("remote control/a.jpg", "laptop/a.jpg"), {}),
    "a word that ends alike": (("damask.jpg", "unmasked.jpg", "d.jpg"), {}),
    "a name that is only the ending": (("-mask.png", "b.jpg"), {}),
}


@pytest.mark.parametrize("kind", SUBJECTS)
def test_a_picture_that_only_sounds_like_a_companion_stays_a_subject(kind: str) -> None:
    names, more = SUBJECTS[kind]
    assert companions(*names, **more).files == set()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a-mask.png", "masks/a.png", "a-masklabel.png"])
def test_a_grey_mask_without_its_picture_is_rejected(name: str) -> None:
    (one,) = companions(name, "b.jpg").rejected
    assert (one.file, one.reason) == (name, "mask without picture")


def test_a_name_that_nothing_else_has_is_a_companion_in_colour_too() -> None:
    assert companions("a-masklabel.png", "b.jpg", colour={"a-masklabel.png"}).files == {"a-masklabel.png"}


def test_two_masks_for_a_picture_are_a_problem_and_neither_is_a_subject() -> None:
    found = companions("a.jpg", "a-mask.png", "masks/a.png")
    assert found.problems == ["two masks for a.jpg: a-mask.png and masks/a.png; keep one"]
    assert found.files == {"a-mask.png", "masks/a.png"}


def test_a_mask_that_fits_two_pictures_is_a_problem_and_two_files_of_one_name_share_theirs() -> None:
    found = companions("x/a.jpg", "y/a.jpg", "masks/a.png")
    assert "may be the mask of x/a.jpg or of y/a.jpg; say which in a column mask_file_name" in found.problems[0]
    shared = companions("a.jpg", "a.webp", "a-mask.png")
    assert shared.masks == {"a.jpg": "a-mask.png", "a.webp": "a-mask.png"} and not shared.problems


def test_a_table_names_masks_of_any_name_and_what_it_names_is_no_subject() -> None:
    found = companions("a.jpg", "b.png", "a-mask.png", **{"a.jpg": "b.png"})
    assert found.masks["a.jpg"] == "b.png" and "two masks for a.jpg: b.png and a-mask.png" in found.problems[0]
    absent = companions("a.jpg", **{"a.jpg": "m/gone.png"})
    assert absent.problems == ["the mask m/gone.png of a.jpg does not exist; correct mask_file_name, or leave it empty"]
    itself = companions("a.jpg", **{"a.jpg": "a.jpg"})
    assert "remove one of the two" in itself.problems[0]


# --- whole folders ---------------------------------------------------------------------------------------------------


def draw(root: Path, name: str, size: tuple[int, int] = (96, 64), seed: int | None = None) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    picture(len(list(root.rglob("*"))) if seed is None else seed, size).save(root / name)


def draw_mask(root: Path, name: str, size: tuple[int, int] = (96, 64)) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill=255)
    mask.save(root / name)


def counted(report: Audit) -> bool:
    """The identity that every audit keeps."""
    parts = (len(report.used), len(report.rejected), report.captions, report.masks, len(report.ignored))
    return report.files == sum(parts) and report.seen == len(report.used) + len(report.rejected)


def test_a_folder_of_onetrainer_trains_its_pictures_and_accounts_for_every_file(tmp_path: Path) -> None:
    for i in range(3):
        draw(tmp_path, f"{i}.jpg")
        draw_mask(tmp_path, f"{i}-masklabel.png")
        (tmp_path / f"{i}.txt").write_text(f"a mug, number {i}")
    draw(tmp_path, "1-condlabel.png")
    draw_mask(tmp_path, "lost-masklabel.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    report = audit(tmp_path, trigger="sks", class_word="mug")
    assert [e.name for e in report.used] == ["0.jpg", "1.jpg", "2.jpg"]
    assert (report.masks, report.masked, report.captions, len(report.ignored)) == (3, 3, 3, 1) and counted(report)
    assert {r.file: r.reason for r in report.rejected} == {
        "1-condlabel.png": "control picture", "lost-masklabel.png": "mask without picture"
    }  # fmt: skip
    assert not report.problems
    shown = CliRunner().invoke(cli.app, ["check", str(tmp_path), "--trigger", "sks", "--class-word", "mug"])
    assert "masks: 3 of 3 images have one" in shown.output
    assert "files 12 = seen 5 + captions 3 + masks 3 + ignored 1" in shown.output


def test_check_tells_scripts_which_images_have_masks(tmp_path: Path) -> None:
    for i in range(2):
        draw(tmp_path, f"{i}.jpg")
    draw_mask(tmp_path, "masks/0.png")
    shown = CliRunner().invoke(cli.app, ["check", str(tmp_path), "--trigger", "sks", "--class-word", "mug", "--json"])
    told = json.loads(shown.output)
    assert (told["mask_files"], told["masked"], [row["mask"] for row in told["images"]]) == (1, 1, ["0.png", None])


def test_a_mask_of_a_rejected_picture_goes_with_it(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg")
    draw(tmp_path, "1.jpg", (8, 8))
    draw_mask(tmp_path, "1-mask.png", (8, 8))
    report = audit(tmp_path, trigger="sks", class_word="mug")
    assert {r.file: r.reason for r in report.rejected} == {"1.jpg": "too small", "1-mask.png": "mask without picture"}
    assert counted(report) and report.masks == 0


def test_equal_masks_are_no_duplicates_and_a_caption_of_a_mask_is_remarked_on(tmp_path: Path) -> None:
    for i in range(2):
        draw(tmp_path, f"{i}.jpg")
        draw_mask(tmp_path, f"{i}-mask.png")
        (tmp_path / f"{i}.txt").write_text(f"mug {i}")
    (tmp_path / "0-mask.txt").write_text("black and white")
    report = audit(tmp_path, trigger="sks", class_word="mug")
    assert report.masked == 2 and not report.rejected and counted(report)
    assert ("0-mask.png", "is a mask: its caption is not used") in report.notes


def test_columns_name_masks_from_where_the_table_lies(tmp_path: Path) -> None:
    draw(tmp_path, "train/0.jpg")
    draw_mask(tmp_path, "train/deep/any name.png")
    rows = [{"file_name": "0.jpg", "text": "a mug", "mask_file_name": "deep\\any name.png"}]
    (tmp_path / "train/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = audit(tmp_path, trigger="sks", class_word="mug")
    (used,) = report.used
    assert used.mask and used.mask.path == tmp_path / "train/deep/any name.png" and counted(report)
    rows.append({"file_name": "deep/any name.png", "text": "a mask", "mask_file_name": ""})
    (tmp_path / "train/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = audit(tmp_path, trigger="sks", class_word="mug")
    assert again.masked == 1 and counted(again)
    assert ("train/deep/any name.png", "is a mask: its caption is not used") in again.notes
