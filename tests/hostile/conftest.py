"""What hostile inputs are made of: sound files, of which each case takes a copy and spoils it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from support.adapters import pocket_adapter
from support.bases import tiny_base
from support.one_file import sdxl_file
from support.photos import pictures

from finetune.cli import app  # noqa: F401  (what a child needs is imported once, in the parent)
from finetune.files import layouts, peft
from finetune.resources import POCKET


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sound inputs of each kind."""
    torch.set_num_threads(1)
    for name in ("api", "captioning.dataset", "cli.data_view", "cli.plan_view", "cli.sampling_view", "proof.verify"):
        __import__(f"finetune.{name}")
    folder = tmp_path_factory.mktemp("sound")
    photos(folder / "photos")
    (folder / "mine.toml").write_text(
        'base = "pocket"\n[data]\npath = "photos"\ntrigger = "sks"\nallow_uncaptioned = true\n[train]\nsteps = 2\n'
    )
    (folder / "words.toml").write_text(
        '[captions]\nproduct = "a {trigger} {class_word} on {settings}"\nstyle = "{settings}, {trigger} style"\n'
        'other = "{settings}"\n[lists]\nsettings = ["a beach", "a table"]\n'
    )
    photos(folder / "bare")
    for caption in (folder / "bare").glob("*.txt"):
        caption.unlink()
    (folder / "prompts.txt").write_text("a cup\n")
    modules = pocket_adapter(folder / "mug.safetensors", 0)
    peft.write_peft(modules, folder / "peft", {})
    shutil.copytree(POCKET, folder / "base")
    assert layouts.read_adapter(folder / "mug.safetensors").modules.keys() >= modules.keys()
    return folder


def photos(folder: Path) -> None:
    folder.mkdir()
    for n in range(4):
        image = Image.new("RGB", (96, 80), (40 * n, 200, 120))
        ImageDraw.Draw(image).ellipse((10 + n, 20, 70, 70 + n), fill=(200, 30, 30))
        image.save(folder / f"photo {n}.png")
        (folder / f"photo {n}.txt").write_text(f"a sks mug, view {n}")


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Path:
    """A copy of all that is sound, to spoil; large files are links, which a case replaces and never writes into."""
    folder = tmp_path / "place"
    shutil.copytree(sound, folder, copy_function=linked_or_copied)
    return folder


def linked_or_copied(source: str, target: str) -> None:
    if os.path.getsize(source) > 1 << 20:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


# -- bases ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: tiny_base(folder / name, name) for name in ("sd15", "sd21", "sdxl")}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "six")


@pytest.fixture
def folder(kept: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a small base, to spoil: part/key=value of its configurations."""

    def made(name: str, called: str = "base", **changes: dict[str, object]) -> Path:
        path = tmp_path / called
        shutil.copytree(kept[name], path)
        for part, values in changes.items():
            config = {"scheduler": "scheduler_config.json"}.get(part, "config.json")
            file = path / "model_index.json" if part == "index" else path / part / config
            said = json.loads(file.read_text()) | values
            file.write_text(json.dumps({k: v for k, v in said.items() if v != "(left out)"}))
        return path

    return made


@pytest.fixture
def silent(kept: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole small SDXL base that says nothing, and of which a forward pass tells nothing, as it is untrained."""
    return sdxl_file(kept["sdxl"], tmp_path / "silent.safetensors", monkeypatch)
