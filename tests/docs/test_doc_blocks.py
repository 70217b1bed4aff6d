"""Every block of the pages for users is carried out: commands are run, Python executed, recipes and JSON read."""

import re
import shutil
from pathlib import Path

import pytest
from support import ROOT
from support.captioners import blip
from support.pages import ELSEWHERE, PAGES, Block, Story, blocks, icons, lines, photos, unrun

import finetune.families.flux as flux
from finetune.sampling.prompt_file import read_prompts

BLIP = "Salesforce/blip-image-captioning-base"
DONE = ("tutorial.md", "troubleshooting.md", "captions.md", "gpu.md", "add-a-family.md")
README = "README.md"
"""tests/cli/test_readme.py follows it"""


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return str(blip(tmp_path_factory.mktemp("blip") / "blip"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Photos and icons, nothing prepared."""
    folder = tmp_path_factory.mktemp("begun")
    photos(folder / "photos")
    icons(folder / "icons")
    return folder


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory):
    """The tutorial, carried out once; the folder that it leaves, and the commands."""
    folder = tmp_path_factory.mktemp("tutorial") / "work"
    return followed("tutorial.md", shutil.copytree(begun, folder), {})


def followed(name: str, folder: Path, instead: dict[str, str]) -> Story:
    story = Story(folder, instead)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks(ROOT / "docs" / name):
            story.follow(block)
    return story


@pytest.mark.whole
def test_the_tutorial_leads_from_photos_to_a_file_and_a_page(finished):
    assert finished.commands.count("train") == 3 and {"check", "report", "status", "verify"} <= {*finished.commands}
    for made in ("mug.html", "runs/rehearsal/report.html", "runs/mug/adapter/mug.safetensors", "pictures/sheet.png",
                 "comparison/comparison.html", "beach.png", "icons-set/metadata.jsonl"):  # fmt: skip
        assert (finished.folder / made).is_file(), made


@pytest.mark.whole
def test_troubleshooting_is_done_with_the_run_of_the_tutorial(finished, tmp_path):
    story = followed("troubleshooting.md", shutil.copytree(finished.folder, tmp_path / "work"), {})
    assert {"evaluate", "sample", "train", "export", "verify", "status"} <= {*story.commands}


@pytest.mark.whole
def test_a_rented_machine_is_used_as_the_page_on_gpus_says(finished, begun, tmp_path):
    shutil.copytree(finished.folder / "mug", tmp_path / "mug")
    assert {"plan", "train", "status"} <= {*followed("gpu.md", tmp_path, {}).commands}


@pytest.mark.whole
def test_captions_are_written_as_their_page_says(begun, captioner, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "work")
    assert followed("captions.md", folder, {BLIP: captioner}).commands.count("caption") == 2


def test_the_class_in_the_guide_to_families_is_the_one_in_the_package():
    [block] = [one for one in blocks(ROOT / "docs" / "add-a-family.md") if one.kind == "python"]
    made = dict(vars(flux))
    exec(block.text, made)
    shown, real = made["Flux"], flux.Flux
    assert (
        shown is not real
        and shown.PARTS.keys() == real.PARTS.keys()
        and shown.TOKENIZERS.keys() == real.TOKENIZERS.keys()
    )
    assert (shown.name, shown.blocks, shown.encoders) == (real.name, real.blocks, real.encoders)


def others() -> list[Block]:
    """Blocks of pages that are no story."""
    return [
        one
        for page in PAGES
        if page.name not in (*DONE[:4], README) or page.parent.name == "data"
        for one in blocks(page)
    ]


def test_the_other_pages_have_only_blocks_that_are_looked_up(tmp_path):
    for block in others():
        where = (block.page.name, block.line)
        if block.kind == "text" and block.page.name == "data.md":
            (tmp_path / "prompts.txt").write_text(block.text)
            assert len(read_prompts(tmp_path / "prompts.txt").lines) > 1, where
        elif block.kind == "text":
            assert block.page.name == "CONTRIBUTING.md", where  # the floors, which tests/test_architecture.py holds
        elif block.kind == "python":
            assert block.page.name == "add-a-family.md", where
        else:
            assert block.kind in ("console", "yaml"), where
            assert block.kind == "yaml" or all(map(unrun, lines(block))), where


def test_what_is_not_carried_out_is_there_and_each_reason_is_needed():
    left = [
        line for page in PAGES for one in blocks(page) if one.kind == "console" for line in lines(one) if unrun(line)
    ]
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for line in left:
        if target := re.match(r"make ([a-z-]+)$", line):
            assert target[1] in targets, line
        for file in re.findall(r"(?:tests|docs|data)/[\w/]+\.py", line):
            assert (ROOT / file).is_file(), line
    assert all(any(re.match(pattern, line) for line in left) for pattern in ELSEWHERE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_hides_from_these_tests(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"(?m)^\s*(```|~~~)", text)) == 2 * len(blocks(page)), "a fence that is not at a line's start"
    outside = re.sub(r"(?ms)^```.*?^```$", "", text)
    indented = [line for line in re.findall(r"(?<=\n\n) {4,}\S.*", outside) if not re.match(r" +([-*]|\d+\.) ", line)]
    assert not indented, indented
