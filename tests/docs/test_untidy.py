"""The documented way from three hundred untidy pictures to an adapter, a few of each sort and two steps long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from finetune.data.dataset import read_dataset


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untidy")
    own = {"SCALE": "0.05", "STEPS": "2", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    script = ["bash", ROOT / "docs" / "untidy.sh", folder]
    ended = subprocess.run(script, env=os.environ | own, capture_output=True, text=True, check=False)
    (folder / "said").write_text(ended.stdout + ended.stderr)
    assert ended.returncode == 4, ended.stdout[-2000:] + ended.stderr[-2000:]  # two steps teach nothing, and it says so
    return folder


def test_it_ends_with_a_verified_file_and_a_verdict(work: Path) -> None:
    assert (work / "run" / "adapter" / "run.safetensors").is_file()
    run = json.loads((work / "run" / "run.json").read_text())
    assert run["outcome"] == "not learnt" and "verified" in (work / "said").read_text()
    assert (work / "handbag.html").stat().st_size > 10_000


def test_every_picture_of_every_source_is_in_one_dataset_with_what_its_source_says(work: Path) -> None:
    made = read_dataset(work / "all")
    by_source: dict[str, int] = {}
    for example in made.examples:
        source = example.name.split("/")[1]
        by_source[source] = by_source.get(source, 0) + 1
    assert len(by_source) == 10, by_source
    assert made.card.seen - made.card.images == len(made.card.rejected) >= 4
    told = {example.name.split("/")[1]: example.attributes for example in made.examples}
    assert told["listed"].license == "CC-BY-4.0" and told["listed"].author
    assert any(e.attributes.weight == 10 for e in made.examples) and any(e.attributes.held_out for e in made.examples)
    assert any(e.attributes.captions for e in made.examples)
    assert all(e.mask for e in made.examples if "/masked/" in e.name)
    assert not any("[trigger]" in e.caption for e in made.examples)


def test_the_repaired_dataset_has_neither_copies_nor_leaks(work: Path) -> None:
    rejected = read_dataset(work / "handbag").card.rejected
    assert {"near duplicate"} <= {one.reason for one in rejected}
