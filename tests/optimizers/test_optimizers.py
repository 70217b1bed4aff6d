"""Optimizers by name, learning rates by step."""

import itertools
import math
import sys
from typing import Any, get_args

import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup
from torch import Tensor, nn

from finetune import optimizers, recipe
from finetune.errors import RunError


def config(**settings: Any) -> recipe.AnyOptimizer:
    return recipe.optimizer(**settings)


def factors(steps: int, **settings: Any) -> list[float]:
    return [optimizers.factor(config(**settings), k, steps) for k in range(steps)]


# -- schedules --------------------------------------------------------------------------------------------------------


def test_schedules_are_what_they_are_called() -> None:
    assert factors(4) == [1.0] * 4
    assert factors(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors(10, schedule="wsd") == pytest.approx([1.0] * 9 + [0.5])
    assert factors(4, schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_warm_up_rises_evenly_from_above_zero_to_the_peak() -> None:
    """No step is wasted at rate 0, and the peak is reached at the last step of the warm-up."""
    for schedule in optimizers.SCHEDULES:
        found = factors(10, schedule=schedule, warmup_steps=4)
        assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
        assert all(a >= b > 0 for a, b in itertools.pairwise(found[4:]))


@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_after_warm_up_the_curve_is_diffusers(name: str, theirs: Any) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    other = theirs(optimizer, 5, 40)
    expected = []
    for _ in range(40):
        expected.append(other.get_last_lr()[0])
        optimizer.step(), other.step()
    assert factors(40, schedule=name, warmup_steps=5)[5:] == pytest.approx(expected[5:], abs=1e-9)


def test_a_warm_up_longer_than_the_run_and_a_run_longer_than_planned_are_finite() -> None:
    assert factors(3, schedule="cosine", warmup_steps=10) == [0.1, 0.2, 0.3]
    for schedule in optimizers.SCHEDULES:
        late = [optimizers.factor(config(schedule=schedule), k, 5) for k in (5, 6, 50)]
        assert all(0 <= f <= 1 and math.isfinite(f) for f in late)


# -- optimizers -------------------------------------------------------------------------------------------------------


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_the_text_encoder_has_its_own_rate_or_the_denoisers() -> None:
    own = config(learning_rate=1e-4, text_encoder_learning_rate=5e-6)
    assert optimizers.rates(own, ["unet", "text_encoder"]) == {"unet": 1e-4, "text_encoder": 5e-6}
    same = config(learning_rate=1e-4)
    assert optimizers.rates(same, ["unet", "text_encoder"]) == {"unet": 1e-4, "text_encoder": 1e-4}
    off = config(learning_rate=1e-4, text_encoder_learning_rate=0.0)
    assert optimizers.rates(off, ["unet", "text_encoder"])["text_encoder"] == 0.0


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_each_component_is_a_group_with_all_settings(name: str) -> None:
    wanted = config(name=name, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.1)
    groups = [("unet", parameters((8, 8), (3,)), 1e-3), ("text_encoder", parameters((8, 2)), 1e-5)]
    built = optimizers.build(wanted, groups)
    assert [g["name"] for g in built.param_groups] == ["unet", "text_encoder"]
    assert [g["lr"] for g in built.param_groups] == [1e-3, 1e-5]
    for group, (_, given, _) in zip(built.param_groups, groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in given]
        assert (tuple(group["betas"]), group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, 0.1)


def test_adamw_is_arxiv_1711_05101() -> None:
    """Three steps against the formulas, written out in float64."""
    (p,) = parameters((5, 3))
    w, m, v = p.detach().double(), torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    built = optimizers.build(config(weight_decay=0.1), [("unet", [p], 1e-2)])
    for t in range(1, 4):
        gradient = (p.detach() ** 2).double()
        p.grad = gradient.float()
        built.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        moved = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        w = w - 1e-2 * 0.1 * w - 1e-2 * moved
        torch.testing.assert_close(p.detach().double(), w, rtol=0, atol=1e-6)


SHAPES = [
    [(8, 8)],
    [(3,), (16, 4), (1,)],
    [(64, 64)],  # 4096 elements: the first size that bitsandbytes keeps in bytes
    [(4095,), (4096,), (4097,), (100, 77), (3, 3)],
]


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_state_bytes_is_what_the_state_takes(name: str, shapes: list[tuple[int, ...]]) -> None:
    given = parameters(*shapes)
    built = optimizers.build(config(name=name), [("unet", given, 1e-3)])
    for _ in range(2):
        for p in given:
            p.grad = torch.ones_like(p)
        built.step()
    assert optimizers.state_bytes(config(name=name), [p.shape for p in given]) == held_bytes(built)


def held_bytes(built: torch.optim.Optimizer) -> int:
    """Each piece of memory once, as several states share a code table."""
    pieces: dict[int, int] = {}

    def collect(held: object) -> None:
        if isinstance(held, Tensor):
            pieces[held.data_ptr()] = held.numel() * held.element_size()
        elif isinstance(held, dict):
            for inner in held.values():
                collect(inner)

    for slots in built.state.values():
        collect(slots)
    return sum(pieces.values())


def test_every_optimizer_is_a_table_and_an_entry() -> None:
    """The tables stand in the recipe, which knows no torch; what is built of them stands in the entries."""
    assert [entry.table for entry in optimizers.OPTIMIZERS.values()] == list(get_args(recipe.AnyOptimizer))
    for name, entry in optimizers.OPTIMIZERS.items():
        assert type(config(name=name)) is entry.table and config(name=name).name == name
    assert all(config(schedule=name).schedule == name for name in optimizers.SCHEDULES)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_optimizer_goes_down_a_quadratic(name: str) -> None:
    (p,) = parameters((64, 64))
    built = optimizers.build(config(name=name), [("unet", [p], 5e-2)])
    first = float(p.detach().square().sum())
    for _ in range(60):
        built.zero_grad()
        p.square().sum().backward()
        built.step()
    assert float(p.detach().square().sum()) < 0.05 * first


def test_a_missing_bitsandbytes_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RunError, match="needs bitsandbytes, which is not installed") as e:
        optimizers.build(config(name="adamw8bit"), [("unet", parameters((2,)), 1e-3)])
    assert "pip install bitsandbytes" in e.value.hint and "optimizer.name = adamw" in e.value.hint
