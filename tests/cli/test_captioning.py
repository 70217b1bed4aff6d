"""`caption` at the command line: what it writes, what it says, and that `check` shows whose the captions are."""

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from support.captioners import blip
from typer.testing import CliRunner

from finetune import cli
from finetune.cli.wording import written
from finetune.data.prepare import prepare
from finetune.errors import DataError, InputError

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


def test_prepare_captions_what_it_prepared_and_a_style_that_nothing_describes_waits_for_it(photos, tmp_path):
    style = ("--trigger", "sks", "--kind", "style")
    refused = CliRunner().invoke(cli.app, ["prepare", str(photos), "--out", str(tmp_path / "no"), *style])
    assert isinstance(refused.exception, DataError) and not (tmp_path / "no").exists()
    words = tmp_path / "colours.toml"
    words.write_text(
        'judge = "pocket"\n[lists]\nobject = ["square", "circle"]\ncolour = ["yellow", "blue"]\n'
        '[[judged]]\nphrases = ["a {colour} background"]\n'
        '[captions]\nstyle = "a thing on {colour}"\n'
    )
    told = said("prepare", photos, "--out", tmp_path / "made", *style, "--caption-with", words)
    assert "captions: 2" in told and f"wrote {tmp_path / 'made'}: 2 images" in told
    captions = [json.loads(row) for row in (tmp_path / "made" / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in captions] == ["a thing on yellow, sks style", "a thing on blue, sks style"]
    assert "a thing on blue, sks style (by a model)" in said("check", tmp_path / "made")


@pytest.mark.parametrize("kind", [["--class-word", "mug"], ["--kind", "style"]])
def test_a_captioner_that_fails_leaves_what_was_prepared_and_says_how_to_go_on(kind, photos, tmp_path, capsys):
    made = tmp_path / "made"
    call = ["prepare", str(photos), "--out", str(made), "--trigger", "sks", *kind, "--caption-with", "no/../model"]
    done = CliRunner().invoke(cli.app, call)
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert f"{made} is prepared, but not captioned: there is no folder no/../model" in done.exception.problem
    assert str(done.exception.action) == f"caption(path='{made}', with_model='no/../model')"
    assert written(done.exception.action, typer.main.get_command(cli.app)) == (
        f"finetune caption {made} --with no/../model"
    )
    assert len(list((made / "images").iterdir())) == 2


def test_a_style_without_captions_is_still_refused_when_its_captioner_failed(photos, tmp_path):
    made = tmp_path / "made"
    call = ["prepare", str(photos), "--out", str(made), "--trigger", "sks", "--kind", "style", "--caption-with", "no"]
    assert CliRunner().invoke(cli.app, call).exit_code != 0
    checked = CliRunner().invoke(cli.app, ["check", str(made)])
    assert isinstance(checked.exception, DataError) and "a style is learnt only when" in checked.output
    assert said("caption", made, "--command", "echo {image}", "-q").endswith("2 captions\n")


def test_a_model_is_named_at_the_command_line(photos, tmp_path):
    made = said(
        "caption", photos, "--with", blip(tmp_path / "blip"), "--trigger", "sks", "--class-word", "mug", "--json"
    )
    told = json.loads(made)
    assert told["captioned"] + len(told["refused"]) == 2
