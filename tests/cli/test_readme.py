"""What the README says, done."""

import re

import pytest
from support import ROOT
from support.pages import Story, blocks, photos

from finetune.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.whole
def test_the_commands_on_ones_own_pictures_work_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    story = Story(tmp_path, {})
    for block in blocks(ROOT / "README.md"):
        story.follow(block)
    assert story.commands == ["prepare", "check", "recipes", "plan", "train", "verify", "sample"]
    assert (tmp_path / "runs/mug/sheet.png").is_file() and (tmp_path / "runs/mug/report.html").is_file()
    assert (tmp_path / "pictures/sheet.png").is_file()


def test_every_command_the_readme_lists_exists_and_every_command_is_listed():
    listed = set(re.findall(r"`([a-z]+)(?: [a-z|]+)?`", README.split("## Commands")[1].split("##")[0]))
    offered = {command.name or command.callback.__name__ for command in app.registered_commands}
    offered |= {group.name for group in app.registered_groups}
    assert listed == offered


def test_the_readme_says_what_was_never_run_and_what_its_pictures_cannot_show():
    assert "nothing has run on one yet" in README and "not how photos will look" in README
