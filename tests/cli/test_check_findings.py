"""`check` says what its audit found in a line each, announces what `prepare --fix` does, and that is what it does."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import ImageFilter
from support.command import said
from support.scenes import as_jpeg, barred, scene, scenes

WORDS = ("--trigger", "sks", "--class-word", "mug")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = scenes(tmp_path / "my photos", 3)
    for name, image in (
        ("copy.jpg", as_jpeg(scene(0), 60)), ("bars.png", barred(scene(7), 24)),
        ("soft.png", scene(5).filter(ImageFilter.GaussianBlur(6))),
    ):  # fmt: skip
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a sks mug called {name[:-4]}")
    return folder


def test_a_line_for_each_sort_of_fault_and_the_repair_as_a_command(capsys, data: Path, tmp_path: Path) -> None:
    code, out, err = said(capsys, "check", data, *WORDS)
    lines = [line for line in out.splitlines() if line.startswith("audit")]
    assert code == 0 and not err and len(lines) == 3
    assert "1 near-duplicate: copy.jpg (like 0.png)" in lines[0] and "1 blurred image: soft.png" in lines[1]
    announced = next(line for line in out.splitlines() if "--fix` would" in line)
    assert announced.endswith("would leave out 1 near-duplicate, crop the border of 1 image")
    command = shlex.split(announced.split("`")[1])
    code, out, err = said(capsys, *[str(tmp_path / "out") if word == "DIR" else word for word in command[1:]])
    assert code == 0 and "rejected copy.jpg: near duplicate: like 0.png" in out
    assert "changed  plain border cropped: 1 image" in out and "not repaired: 1 blurred image: soft.png" in out + err
    assert "--fix" not in said(capsys, "check", tmp_path / "out")[1]


def test_json_has_flags_measures_groups_and_repairs(capsys, data: Path, tmp_path: Path) -> None:
    told = json.loads(said(capsys, "check", data, *WORDS, "--json", "--base", "pocket")[1])
    rows = {row["file"]: row for row in told["images"]}
    assert rows["copy.jpg"]["flags"] == [{"flag": "near duplicate", "detail": "like 0.png"}]
    assert rows["0.png"]["flags"] == [] and rows["bars.png"]["measures"]["borders"] == [0, 24, 0, 24]
    assert rows["soft.png"]["measures"]["detail"] > 2.5 and len(rows["0.png"]["measures"]["fingerprint"]) == 16
    (group,) = told["near_duplicates"]
    assert group["best"] == "0.png" and group["others"][0]["name"] == "copy.jpg"
    assert told["fix"]["would"] == ["leave out 1 near-duplicate", "crop the border of 1 image"]
    assert told["fix"]["cropped"] == [{"file": "bars.png", "to": [0, 24, 160, 184]}]
    assert told["thresholds"]["similar"] == 10 and told["captions"]["encoders"][0]["limit"] == 32
    made = json.loads(said(capsys, "prepare", data, "--out", tmp_path / "out", *WORDS, "--fix", "--json")[1])
    assert made["rejected"] == told["fix"]["left_out"] and "soft.png" in str(made["unrepaired"])
    assert made["changes"] == {"near-duplicate left out": 1, "plain border cropped": 1}


def test_thresholds_are_options_and_go_on_into_the_announced_command(capsys, data: Path) -> None:
    code, out, _ = said(capsys, "check", data, *WORDS, "--threshold", "border=0.3", "--threshold", "blurred=30")
    assert code == 0 and "border of" not in out and "blurred image" not in out
    assert "--fix --threshold border=0.3 --threshold blurred=30` would leave out 1 near-duplicate" in out


@pytest.mark.parametrize("wrong, hint", [
    (("check", "--threshold", "similar=99"), "similar=10 is the default"),
    (("check", "--threshold", "x"), "one of similar"),
    (("prepare", "--out", "x", "--threshold", "similar=3"), "add --fix"),
])  # fmt: skip
def test_a_threshold_that_says_nothing_is_refused(capsys, data: Path, wrong, hint: str) -> None:
    code, out, err = said(capsys, wrong[0], data, *WORDS, *wrong[1:])
    assert code == 2 and not out and "--threshold" in err and hint in err


def test_sound_pictures_are_said_nothing_about(capsys, tmp_path: Path) -> None:
    out = said(capsys, "check", scenes(tmp_path / "photos", 6), *WORDS)[1]
    assert "audit" not in out.replace("audited", "") and "--fix" not in out


def test_captions_are_shown_as_they_are_written_also_where_they_look_like_emoji(capsys, tmp_path: Path) -> None:
    folder = scenes(tmp_path / "photos", 1)
    (folder / "0.txt").write_text("a sks mug <lora:x:1> :cat:")
    out = said(capsys, "check", folder, *WORDS)[1]
    assert out.count("<lora:x:1>") == 2 and ":cat:" in out and "\N{CAT}" not in out


def test_the_longest_text_is_that_of_all_wordings_that_training_shows(capsys, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        scene(number).save(folder / f"IMG_{number:04d}.png")
    asked = ("check", folder, *WORDS, "--base", "pocket")
    rows = json.loads(said(capsys, *asked, "--json")[1])["images"]
    longest = max(row["tokens"] for row in rows)
    assert longest > 9 and f"the longest caption has {longest} tokens" in said(capsys, *asked)[1]
