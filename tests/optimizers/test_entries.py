"""An optimizer is one entry with options of its own: those of others register here, train, resume and are counted."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from support.bench import Bench, bench
from support.photos import pictures
from torch import Tensor

from finetune import optimizers, recipe
from finetune.optimizers.entry import Entry, Groups, Shape
from finetune.planning import footprint
from finetune.training import checkpoint, preflight


class SGD(recipe.Optimizer):
    name: Literal["sgd"] = "sgd"
    momentum: float = 0.9


class Muon(recipe.Optimizer):
    name: Literal["muon"] = "muon"
    newton_schulz_steps: int = 3


class Lion(recipe.Optimizer):
    name: Literal["lion"] = "lion"
    beta1: float = 0.9
    beta2: float = 0.99


class LionOptimizer(torch.optim.Optimizer):
    """arXiv:2302.06675, algorithm 2, without weight decay."""

    def __init__(self, groups: Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 1e-4, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                assert p.grad is not None
                p.sub_(mean.lerp(p.grad, 1 - beta1).sign(), alpha=lr)
                mean.lerp_(p.grad, 1 - beta2)


def floats(each: int, beside: int = 0) -> Any:
    """A rule for state bytes: so many float32 an element, and so many a parameter."""

    def count(config: Any, shapes: Sequence[Shape]) -> int:
        return sum(4 * (each * math.prod(shape) + beside) for shape in shapes)

    return count


ENTRIES: dict[str, Entry[Any]] = {
    "sgd": Entry(SGD, lambda groups, config: torch.optim.SGD(groups, momentum=config.momentum), floats(1)),
    "muon": Entry(
        Muon, lambda groups, config: torch.optim.Muon(groups, ns_steps=config.newton_schulz_steps), floats(1)
    ),
    "lion": Entry(Lion, lambda groups, config: LionOptimizer(groups, (config.beta1, config.beta2)), floats(1)),
    "adafactor": optimizers.OPTIMIZERS["adafactor"],
    "adamw8bit": optimizers.OPTIMIZERS["adamw8bit"],
}


@pytest.fixture(params=ENTRIES)
def trained(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Bench]:
    """Two benches with the optimizer, of one recipe; nothing but the entry knows of it."""
    entry = ENTRIES[request.param]
    monkeypatch.setitem(optimizers.OPTIMIZERS, request.param, entry)
    photos = pictures(tmp_path / "photos", [(64, 64)] * 2)
    built = optimizers.build
    monkeypatch.setattr(optimizers, "build", lambda config, groups: built(entry.table(), groups))
    one, other = (bench("pocket", photos, data__resolution=64, train__steps=6) for _ in range(2))
    monkeypatch.setattr(optimizers, "build", built)
    return _with(one, entry), _with(other, entry)


def _with(made: Bench, entry: Entry[Any]) -> Bench:
    wanted = made.plan.recipe.model_copy(update={"optimizer": entry.table()})
    plan = dataclasses.replace(made.plan, recipe=wanted)
    made.batches.plan = plan
    return made._replace(plan=plan)


def test_an_entry_trains_resumes_and_is_counted(trained: tuple[Bench, Bench], tmp_path: Path) -> None:
    one, other = trained
    preflight.measure(one.state, one.batches, one.plan.recipe, one.machine)
    before = one.weights()
    steps = one.train(3)
    assert all(math.isfinite(step.loss) and not step.skipped for step in steps)
    assert all(not torch.equal(before[name], held) for name, held in one.weights().items() if "lora_B" in name)
    rows = footprint.component_footprints(one.plan)
    assert sum(row.optimizer_bytes for row in rows) == _held_bytes(one)

    checkpoint.save_checkpoint(tmp_path / "checkpoints", one.state, {}, 1)
    found = checkpoint.newest(tmp_path / "checkpoints")[0]
    assert found is not None
    checkpoint.load_checkpoint(found, other.state)
    assert [s.loss for s in other.train(6)] == [s.loss for s in one.train(6)]
    assert all(torch.equal(held, other.weights()[name]) for name, held in one.weights().items())


def _held_bytes(made: Bench) -> int:
    """Of tensors as large as parameters or counted for each; numbers that Python holds are not on the device."""
    held = {t.data_ptr(): t.numel() * t.element_size() for slots in made.state.optimizer.state.values()
            for t in slots.values() if isinstance(t, Tensor)}  # fmt: skip
    return sum(held.values())
