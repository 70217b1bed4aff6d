"""The pages for users as tests see them: their blocks, and a story in which one after the other is carried out."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from typer.testing import CliRunner

from finetune import recipe
from finetune.cli import app
from finetune.resources import base_path
from support import ROOT

PAGES = sorted({*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "data").rglob("README.md")})
LARGE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""the base that pages name, in whose place the pocket base is run"""
ELSEWHERE = {
    r"make [a-z]+$": "its target stands in the Makefile; that is looked up",
    r"pip install \.$": "the tests run what it installs",
    r"hf (download|auth login)\b": "asks the hub",
    r"nvidia-smi$": "needs a GPU",
    r"python -m http\.server 8000\b": "never ends; the tests of the site serve in the same way",
    r"torchrun ": "tests/training starts ranks by it",
    r"finetune train .* --gpus \d": "tests/training/test_launch.py starts ranks, and a story has time for one",
    r"(\.venv/bin/)?python (-m pytest .*|docs/\w+\.py|data/\w+\.py)": "the file that it names is looked up",
}
"""Lines of console blocks that no story carries out, and why."""
SHORT = ("train.steps=2", "sample.every=0", "sample.steps=2", "evaluate.count=0", "data.resolution=32")
"""two steps learn nothing, which a verdict would call an error"""


class Block(NamedTuple):
    page: Path
    line: int
    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Its fenced blocks, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"(?ms)^(?P<fence>```+)(?P<kind>[^\n]*)\n(?P<text>.*?)^(?P=fence)$", text)
    return [Block(page, text[: one.start()].count("\n") + 1, one["kind"].strip(), one["text"]) for one in found]


def lines(block: Block) -> list[str]:
    """The commands of a console block, as they are typed; remarks are no part of them."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [line for each in joined if (line := re.sub(r"\s+#(\s.*)?$", "", each).strip()) and not line.startswith("#")]


def unrun(line: str) -> bool:
    return any(re.match(pattern, line) for pattern in ELSEWHERE)


def photos(folder: Path, count: int = 6) -> None:
    """So many photos of a mug, as a camera calls them."""
    folder.mkdir()
    for i in range(count):
        image = Image.new("RGB", (96, 96), (40 * i, 200, 120))
        ImageDraw.Draw(image).ellipse((10 + i, 20, 80, 80 + i), fill=(30, 30, 200))
        image.save(folder / f"IMG_{i + 1}.png")


def icons(folder: Path) -> None:
    """Icons whose names say what they show."""
    photos(folder)
    for path, name in zip(sorted(folder.iterdir()), ("bell", "car", "heart", "key", "leaf", "moon"), strict=True):
        path.rename(folder / f"{name}.png")


class Story:
    """Somebody who follows a page in a folder: runs start from small bases, and take two steps."""

    def __init__(self, folder: Path, instead: Mapping[str, str]) -> None:
        self.folder, self.instead = folder, {LARGE: "pocket", **instead}
        self.commands: list[str] = []
        """names of the commands that were carried out"""

    def follow(self, block: Block) -> None:
        """Carry out a block. The working folder must be the story's."""
        where = f"{block.page.name}:{block.line}"
        if block.kind == "console":
            for line in lines(block):
                if not unrun(line):
                    self._type(line, where)
        elif block.kind == "python":
            text = block.text.replace(LARGE, base_path("pocket"))
            exec(compile(text, where, "exec"), {})
        elif block.kind == "toml":
            fragment(block, self.folder)
        elif block.kind == "json":
            assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines()), where
        else:
            raise AssertionError(f"{where}: nobody carries out a block of kind {block.kind!r}")

    def _type(self, line: str, where: str) -> None:
        words = shlex.split(line)
        assert words[0] == "finetune", f"{where}: {line}: neither carried out nor in ELSEWHERE"
        command = [self.instead.get(word, word) for word in words[1:]]
        result = CliRunner().invoke(app, [*command, *_less(command)])
        code = getattr(result.exception, "exit_code", result.exit_code)
        wanted = 4 if command[0] == "evaluate" else 0  # two steps learn nothing
        assert code == wanted, (where, line, result.output, result.exception)
        self.commands.append(command[0])
        if command[:2] == ["recipes", "copy"]:
            shrink(self.folder / command[-1])


def _less(command: list[str]) -> list[str]:
    """What makes it short."""
    if command[0] == "train" and "--resume" not in command:
        return [word for one in SHORT for word in ("--set", one)]
    fewer = {
        "sample": ["--steps", "2"],
        "evaluate": ["--count", "4"],
        "compare": ["--prompt", "a {trigger} {class_word}"],
    }
    return fewer.get(command[0], [])


def shrink(path: Path) -> None:
    """A recipe for a large base, cut down to the pocket base, with what its owner is told to change."""
    text = path.read_text()
    for key, value in {"base": '"pocket"', "path": '"mug"', "resolution": "32", "base_bits": None}.items():
        text = re.sub(rf"(?m)^{key} = .*\n", f"{key} = {value}\n" if value else "", text)
    text = re.sub(r"(?m)^steps = .*$", "steps = 2", text)
    path.write_text(re.sub(r"(?m)^every = .*$", "every = 0", text))


def fragment(block: Block, folder: Path) -> recipe.Loaded:
    """A block of TOML as part of a recipe: laid over a shipped one."""
    written = folder / "fragment.toml"
    head = "" if re.search(r"(?m)^(base|extends) = ", block.text) else 'extends = ["pocket-product"]\n'
    written.write_text(head + block.text, encoding="utf-8")
    return recipe.load(written)


def inline(page: Path) -> Iterator[str]:
    """What stands in backquotes, blocks excepted."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    yield from re.findall(r"`([^`\n]+)`", text)
