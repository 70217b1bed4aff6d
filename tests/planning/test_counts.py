"""A plan's counts are kept: the same as counted, again only when something that decides them is another."""

from pathlib import Path

import pytest
from support.photos import pictures

from finetune import recipe
from finetune.families import FAMILIES
from finetune.planning import activations, counts, footprint
from finetune.planning import plan as planning
from finetune.planning.footprint import ComponentFootprint
from finetune.planning.plan import Plan


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been counted on the structure."""
    done: list[str] = []
    row = ComponentFootprint("unet", 1, 2, 3, 4, 5, 6, 7)
    for module, name, value in ((footprint, "component_footprints", [row]), (activations, "activation_bytes", 8)):
        monkeypatch.setattr(module, name, lambda plan, name=name, value=value: (done.append(name), value)[1])
    return done


def planned(folder: Path, *sets: str) -> Plan:
    if not folder.exists():
        pictures(folder)
    path = folder.parent / "recipe.toml"
    path.write_text(f'base = "pocket"\n[data]\npath = "{folder}"\n')
    return planning.resolve_plan(recipe.load(path, sets))


def asked(plan: Plan) -> tuple[object, object]:
    return counts.kept_footprints(plan), counts.kept_activation_bytes(plan)


def test_kept_counts_are_those_that_were_counted(tmp_path):
    plan = planned(tmp_path / "data")
    real = footprint.component_footprints(plan), activations.activation_bytes(plan)
    assert asked(plan) == asked(plan) == real


def test_they_are_counted_once(tmp_path, counted):
    found = [asked(planned(tmp_path / "data")) for _ in range(3)]
    assert len(counted) == 2 and found == [([ComponentFootprint("unet", 1, 2, 3, 4, 5, 6, 7)], 8)] * 3


CHANGES = (
    "adapter.rank=3", "adapter.targets=all", "train.batch=2", "train.precision=bf16", "train.ema=0.9",
    "optimizer.name=adafactor", "data.resolution=128", "prior.mode=own_prediction",
    'adapter.components=["text_encoder"]', "train.gradient_checkpointing=true", "adapter.method=full",
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_counts_has_them_counted_again(change, tmp_path, counted):
    asked(planned(tmp_path / "data", "data.trigger=sks"))
    asked(planned(tmp_path / "data", "data.trigger=sks", change))
    assert len(counted) == 4


def test_what_does_not_leaves_them(tmp_path, counted):
    for sets in ((), ("train.steps=7",), ("data.flip=true",), ("sample.every=5",)):
        asked(planned(tmp_path / "data", *sets))
    assert len(counted) == 2


def test_a_family_of_another_package_is_counted_each_time(tmp_path, counted, monkeypatch):
    plan = planned(tmp_path / "data")
    monkeypatch.setattr("finetune.families.FAMILIES", {n: where for n, where in FAMILIES.items() if n != "sd"})
    monkeypatch.setattr("finetune.families.registry", lambda: {"sd": "finetune.families.sd:StableDiffusion"})
    asked(plan), asked(plan)
    assert len(counted) == 4
