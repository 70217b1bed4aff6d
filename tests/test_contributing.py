"""What CONTRIBUTING says of adding things is so: each is added here as it says, and nothing else is touched."""

import dataclasses
import math
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Literal

import pytest
import torch
from families.toy_video import toy_video
from support import ROOT, rslora
from support.bases import t5, t5_tokenizer
from support.bench import Bench, settled
from support.photos import pictures

from finetune import families, optimizers, recipe
from finetune.adapters import attach as adapters
from finetune.adapters.methods import METHODS
from finetune.families.base import components
from finetune.files.metadata import About
from finetune.proof import export, verify
from finetune.training.begin import begin

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


class RsLoRA(recipe.LowRank):
    method: Literal["rslora"] = "rslora"


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Bench]:
    """Three steps of a method that the package does not know."""
    plan = settled("pocket", pictures(tmp_path / "photos", [(64, 64)] * 2), data__resolution=64)
    table = RsLoRA(rank=4, alpha=2.0, targets=("to_q", "to_v"), components=("denoiser", "text_encoder"))
    plan = dataclasses.replace(plan, recipe=plan.recipe.model_copy(update={"adapter": table}))
    before = dict(METHODS)
    METHODS.clear()
    METHODS.update(rslora=rslora, **before)
    try:
        run = begin(plan)
        made = Bench(run.plan, run.family, run.state, run.data.batches, run.device, run.data.latents, run.data.captions)
        made.train()
        yield made
    finally:
        METHODS.clear()
        METHODS.update(before)


def test_a_method_is_a_table_a_file_and_a_line(trained: Bench, tmp_path: Path) -> None:
    assert trained.state.step == 3
    trained.grow(0.1)
    parts = components(trained.family)
    changes = adapters.read_changes(parts)
    assert changes and {change.scale for change in changes.values()} == {2.0 / math.sqrt(4)}
    adapters.check_read(trained.state.trainable, changes)
    about = About.of(trained.plan.facts)
    done = export.export(changes, tmp_path / "out", "one", ("universal", "diffusers"), "float32", about, "pocket")
    for file in (done.universal, done.diffusers, done.peft):
        assert file is not None and verify.verify(file, "pocket", changes).ok


def test_a_schedule_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.schedules.SCHEDULES, "root", lambda done: math.sqrt(1 - done))
    config = recipe.AdamW().model_copy(update={"schedule": "root", "warmup_steps": 2})
    factors = [optimizers.schedules.factor(config, step, 10) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors[2:] == sorted(factors[2:], reverse=True)


def test_a_family_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = toy_video(tmp_path / "base", t5(32), t5_tokenizer(tmp_path / "words", 512))
    entry = EntryPoint("toy_video", "families.toy_video:ToyVideo", "finetune.families")
    monkeypatch.setattr(families, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    assert "toy_video" not in families.FAMILIES and families.detect(str(base)).family == "toy_video"
    assert components(families.load(str(base)))


def test_every_file_and_folder_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:tests|docs|recipes|finetune)/[\w./-]+)`", PAGE)
    inside = re.findall(r"`((?:families|recipe|adapters|optimizers|planning|diffusion|training|proof)/[\w./-]*)`", PAGE)
    assert len(named) > 8 and len(inside) > 8
    assert not [path for path in named if not (ROOT / path).exists()]
    assert not [path for path in inside if not (ROOT / "finetune" / path).exists()]
    floors = re.search(r"```text\n(cli/.*?)```", PAGE, re.S)
    assert floors is not None
    folders = re.findall(r"^(\w+)/", floors[1], re.M)
    assert set(folders) == {p.parent.name for p in (ROOT / "finetune").glob("*/__init__.py")} - {"bundled"}
