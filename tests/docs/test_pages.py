"""What the pages for users name is there: files, sections, commands, options, recipe keys. Made pages are fresh."""

import re
import tomllib
from pathlib import Path

import pytest
from support import ROOT
from support.pages import PAGES, blocks, inline

from finetune import errors, recipe

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED = "tutorial captions data gpu bases pocket troubleshooting commands api adapters recipes".split()
USERS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMED)]
FLAGS_OF_OTHERS = {"--logdir", "--nproc_per_node", "--local-dir", "--bind", "--directory"}
FLAGS_OF_OTHERS |= {"--n", "--w", "--h", "--d", "--s", "--l", "--ar", "--ss", "--am", "--cn"}
"""the second row is of other trainers' prompts"""
KEYS = set(recipe.keys())
TABLES = {key.partition(".")[0] for key in KEYS if "." in key}
FILES = {"html", "md", "toml"}
"""report.html is no key"""


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import make_commands
        import make_picture
        import make_pocket
        import make_recipes

        yield {one.__name__: one for one in (make_commands, make_picture, make_pocket, make_recipes)}


@pytest.mark.parametrize("name", ["make_commands", "make_pocket", "make_recipes"])
def test_a_page_that_is_made_is_what_its_source_says(made, name):
    assert made[name].PAGE.read_text(encoding="utf-8") == made[name].page(), f"python docs/{name}.py"


def test_the_picture_is_made_of_what_is_there(made):
    from PIL import Image, ImageChops

    with Image.open(made["make_picture"].PAGE) as kept:
        drawn = made["make_picture"].drawn()
        assert kept.size == drawn.size
        tiles = (made["make_picture"].LEFT, 0, *drawn.size)  # fonts differ between versions of Pillow
        unlike = (
            ImageChops.difference(kept.convert("RGB").crop(tiles), drawn.crop(tiles))
            .convert("L")
            .point(lambda v: 255 * (v > 32))
        )
        assert unlike.histogram()[255] < 0.02 * unlike.width * unlike.height, "python docs/make_picture.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_picture_and_section_that_a_page_points_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(re.sub(r"(?ms)^```.*?^```$", "", text)):
        if "://" in target:
            continue
        path, _, section = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if section:
            assert section in sections(there), target


def sections(page: Path) -> set[str]:
    heads = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", USERS, ids=lambda page: page.name)
def test_every_command_option_and_recipe_key_that_a_page_names_exists(made, page):
    commands = made["make_commands"].commands()
    options = {name: {flag for one in made["make_commands"].parameters(command) for flag in one.flags}
               for name, command in commands.items()}  # fmt: skip
    every = set().union(*options.values()) | FLAGS_OF_OTHERS | {"--version", "--install-completion", "--help"}
    typed = [line for one in blocks(page) if one.kind == "console" for line in one.text.splitlines()]
    for said in [*inline(page), *typed]:
        if call := re.match(r"finetune ([a-z]+)(?: ([a-z]+))?", said):
            name = " ".join(filter(None, call.groups())) if call[1] in ("recipes", "cache") else call[1]
            assert name in commands, said
            assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", said.partition("#")[0])) <= options[name] | {"--help"}, said
        elif not said.startswith(("hf ", "python ", "ssh ", "torchrun ")):
            assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", said.partition("#")[0])) <= every, said
    for said in inline(page):
        for key in re.findall(rf"(?<![\w./])(?:{'|'.join(TABLES)})\.[a-z_0-9]+(?![\w.(/])", said):
            assert key in KEYS or key.partition(".")[2] in FILES, key


def test_every_shipped_recipe_for_a_gpu_is_in_the_table_of_its_memory():
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    told = {
        name: gb
        for gb, names in re.findall(r"(?m)^\| (\d+) GB \| (.*) \|$", text)
        for name in re.findall("`(.*?)`", names)
    }
    heads = {path.stem: re.match(r".*\n# GPU: (\d+) GB", path.read_text(encoding="utf-8"))
             for path in (ROOT / "recipes").glob("*.toml")}  # fmt: skip
    assert told == {name: head[1] for name, head in heads.items() if head}


def test_every_exit_code_is_told_and_means_what_ends_so(made):
    meanings = made["make_commands"].MEANINGS
    ends = {errors.FinetuneError}
    for kind in ends.copy():
        ends |= below(kind)
    assert {0, *(kind.exit_code for kind in ends)} == meanings.keys()
    assert all(kind is None or kind.exit_code == code for code, (kind, _) in meanings.items())


def below(kind: type) -> set[type]:
    return {found for sub in kind.__subclasses__() for found in {sub, *below(sub)}}


def test_what_pocket_can_draw_is_all_of_its_vocabulary():
    lists = tomllib.loads((ROOT / "data/vocabularies/pocket.toml").read_text(encoding="utf-8"))["lists"]
    page = (ROOT / "docs" / "pocket.md").read_text(encoding="utf-8")
    assert len(lists["objects"]) == 237 and all(word in page for word in [*lists["objects"], *lists["settings"]])
