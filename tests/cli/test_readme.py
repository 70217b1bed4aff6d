"""What the README says, done."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from support import ROOT
from typer.testing import CliRunner

from finetune.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Six photos of a mug, and the folder to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(6):
        image = Image.new("RGB", (96, 96), (40 * i, 200, 120))
        ImageDraw.Draw(image).ellipse((10 + i, 20, 80, 80 + i), fill=(30, 30, 200))
        image.save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def commands() -> list[list[str]]:
    """The lines of the block on one's own pictures."""
    block = re.findall(r"```console\n(.*?)```", README, re.DOTALL)[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("finetune ")]


@pytest.mark.whole
def test_the_commands_on_ones_own_pictures_work_as_written(photos):
    ran = []
    for command in commands():
        command = [word.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", "pocket") for word in command]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.output, result.exception)
        ran.append(command[0])
        if command[0] == "recipes":  # "then: base, data.path, steps"
            shrink(photos / command[-1])
    assert ran == ["prepare", "check", "recipes", "plan", "train", "verify", "sample"]
    assert (photos / "runs/mug/sheet.png").is_file() and (photos / "pictures/sheet.png").is_file()


def test_every_command_the_readme_lists_exists_and_every_command_is_listed():
    listed = set(re.findall(r"`([a-z]+)(?: [a-z|]+)?`", README.split("## Commands")[1].split("##")[0]))
    offered = {command.name or command.callback.__name__ for command in app.registered_commands}
    offered |= {group.name for group in app.registered_groups}
    assert listed == offered


def test_the_files_the_readme_points_to_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links), links


def test_the_page_on_recipes_is_what_the_schema_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_recipes

    assert make_recipes.PAGE.read_text(encoding="utf-8") == make_recipes.page(), "python docs/make_recipes.py"


def shrink(path: Path) -> None:
    """A recipe for a large base, cut down to two steps on the pocket base."""
    text = path.read_text()
    text = re.sub(r"(?m)^base = .*$", 'base = "pocket"', text)
    text = re.sub(r"(?m)^path = .*$", 'path = "mug"', text)
    text = re.sub(r"(?m)^resolution = .*$", "resolution = 64", text)
    text = re.sub(r"(?m)^steps = .*$", "steps = 2", text)
    text = re.sub(r"(?m)^every = .*$", "every = 0", text)
    path.write_text(f"{text}\n[evaluate]\ncount = 0  # two steps learn nothing\n")
