"""Two new users, with the README alone and pictures of their own: `pytest -m slow tests/pocket/test_stories.py`.

Minutes each. The style needs the emoji font (Debian's fonts-noto-color-emoji) to draw what its owner has.
"""

import json
from pathlib import Path

import foreign
import icons
import pytest
from support.command import ran

pytestmark = [pytest.mark.slow, pytest.mark.whole]


def prepared(name: str, folder: Path, *words: str) -> Path:
    """The owner's folder, prepared; its captions are nobody's."""
    foreign.write(name, folder / "pictures")
    done = ran("prepare", folder / "pictures", "--out", folder / "set", "--trigger", "sks", *words)
    assert done.returncode == 0, done.stderr
    return folder / "set"


def trained(kind: str, data: Path, *sets: str) -> tuple[int, dict, dict, str]:
    """(exit code, the verdict's event, run.json, stderr) of the shipped recipe with another path and nothing else."""
    out = data.parent / "run"
    done = ran("train", f"pocket-{kind}", "--out", out, "--set", f"data.path={data}", *sets)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    [told] = [event for event in events if event["event"] == "evaluated"]
    return done.returncode, told, json.loads((out / "run.json").read_text()), done.stderr


def test_six_photos_of_a_handbag_without_captions_are_learnt(tmp_path):
    code, told, run, _ = trained("product", prepared("handbag", tmp_path, "--class-word", "handbag"))
    assert code == 0 and told["learnt"] and run["outcome"] == "done", told
    seen, of = map(int, told["seen"].split("/"))
    assert seen >= 0.8 * of and told["scores"]["drift"]["value"] <= 0.1
    assert not told["reasons"]
    asked = ran("evaluate", tmp_path / "run", "--json")
    assert asked.returncode == 0 and json.loads(asked.stdout)["seen"] == told["seen"]


@pytest.mark.skipif(not icons.FONT.is_file(), reason="the emoji font is not installed")
def test_sixteen_icons_whose_files_say_what_they_show_are_learnt(tmp_path):
    code, told, run, _ = trained("style", prepared("lines", tmp_path, "--kind", "style"))
    assert code == 0 and told["learnt"] and run["outcome"] == "done", told
    seen, of = map(int, told["seen"].split("/"))
    assert seen >= 0.8 * of and told["scores"]["drift"]["value"] <= 0.1


def test_one_caption_for_all_photos_is_told_as_the_cause_of_what_was_not_learnt(tmp_path):
    """The file is there, and proved; the run says that the bag is not in its pictures, and why."""
    data = prepared("handbag", tmp_path, "--class-word", "handbag", "--template", "a photo of {trigger} {class_word}")
    code, told, run, error = trained("product", data)
    assert code == 4 and not told["learnt"] and run["outcome"] == "not learnt"
    assert Path(told["path"]).is_file()
    assert told["reasons"][0].startswith('all 6 captions are the same ("a photo of sks handbag")')
    assert "not learnt: the product is seen in" in error and "all 6 captions are the same" in error
