"""`caption` at the command line: what it writes, what it says, and that `check` shows whose the captions are."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from finetune import cli
from finetune.data.prepare import prepare

GROUNDS = {"IMG_1": (250, 220, 70), "IMG_2": (70, 120, 225)}


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in GROUNDS.items():
        shown = Image.new("RGB", (96, 96), colour)
        shown.paste((90, 40, 130), (30, 30, 66, 70))
        shown.save(folder / f"{name}.png")
    return folder


def said(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_pocket_vocabulary_captions_a_prepared_dataset_and_check_marks_them(photos, tmp_path):
    made = prepare(photos, tmp_path / "bag", trigger="sks", class_word="handbag").root
    told = said("caption", made, "--vocabulary", "pocket")
    assert "captions: 2" in told and f"wrote {made / 'metadata.jsonl'}: 2 captions" in told
    assert "a sks handbag on a yellow background (by a model)" in said("check", made)
    rows = json.loads(said("check", made, "--json"))
    assert rows["origins"] == {"model": 2} and {row["caption_by"] for row in rows["images"]} == {"model"}
    assert [row["caption"] for row in rows["images"]] == [
        "a sks handbag on a yellow background", "a sks handbag on a blue background",
    ]  # fmt: skip
    assert said("caption", made, "--vocabulary", "pocket", "-q") == f"nothing to caption in {made}\n"


def test_json_is_all_there_is_to_read(photos):
    told = json.loads(said("caption", photos, "--command", "echo a mug", "--trigger", "sks", "--class-word", "mug",
                           "--command", "echo a mug {image}", "--json"))  # fmt: skip
    assert told["captioned"] == 2 and told["refused"] == [] and told["written"] == str(photos / "metadata.jsonl")
    assert told["captions"]["IMG_1.png"].startswith("a sks mug ")
