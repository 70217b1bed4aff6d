"""A checkpoint keeps all that an optimizer keeps: a resumed one is the unbroken one to the byte."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prodigyopt
import pytest
import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune import optimizers, recipe
from finetune.errors import RunError
from finetune.training import checkpoint
from finetune.training.loop import State

IDENTITY = {"base": "ab12"}


class Odd(Optimizer):
    """Keeps a bit of everything: other dtypes than the parameter's, lists, tuples, text, tensors of the group."""

    def __init__(self, groups: Any, lr: float = 1.0, rule: Callable[[Tensor], Tensor] = torch.sign) -> None:
        super().__init__(groups, {"lr": lr, "rule": rule, "phase": "warm", "window": (0.5, None), "seen": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["seen"] += 1
            group["phase"] = "warm" if group["seen"] < 3 else "hot"
            group["window"] = (group["window"][0] * 0.9, True)
            group["length"] = group.get("length", torch.zeros((), dtype=torch.float64)) + 1 / group["seen"]
            for p in group["params"]:
                assert p.grad is not None
                kept = self.state[p]
                if not kept:
                    kept |= {"mean": torch.zeros_like(p, dtype=torch.bfloat16), "count": torch.zeros(2).long()}
                    kept |= {"last": [0.0], "signs": torch.zeros_like(p, dtype=torch.int8)}
                kept["mean"].mul_(0.9).add_(p.grad.bfloat16(), alpha=0.1)
                kept["count"] += torch.tensor([1, 1 << 40])
                kept["signs"] = group["rule"](p.grad).to(torch.int8)
                kept["last"] = [*kept["last"][-2:], float(p.grad.sum())]
                scale = float(group["length"]) * group["window"][0] * (1 if group["phase"] == "warm" else 2)
                p -= 1e-3 * scale * (kept["mean"].float() + kept["signs"] * kept["count"][0] + sum(kept["last"]))


def schedule_free(groups: Any) -> Optimizer:
    optimizer = schedulefree.AdamWScheduleFree(groups, warmup_steps=4)
    optimizer.train()
    return optimizer


def entry(name: str) -> Callable[[Any], Optimizer]:
    config = recipe.optimizer(name)
    return lambda groups: optimizers.build(config, [(g["name"], g["params"], g["lr"]) for g in groups])


BUILT: dict[str, Callable[[Any], Optimizer]] = {
    **{name: entry(name) for name in optimizers.OPTIMIZERS},
    "prodigy": lambda groups: prodigyopt.Prodigy(groups, weight_decay=0.01, safeguard_warmup=True),
    "schedule-free": schedule_free,
    "sgd, bare": torch.optim.SGD,
    "sgd, momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
    "odd": Odd,
}


def fresh(name: str, seed: int = 0) -> State:
    """Two components; the first is large enough for 8-bit state, the second is not."""
    chance = torch.Generator().manual_seed(seed)
    trainable = {
        "unet": {"to_q.lora_A": nn.Parameter(torch.randn(80, 60, generator=chance))},
        "text_encoder": {"q.lora_A": nn.Parameter(torch.randn(3, 5, generator=chance))},
    }
    groups = [{"params": list(ps.values()), "lr": 1e-2, "name": c} for c, ps in trainable.items()]
    return State(trainable, BUILT[name](groups))


def step(state: State, count: int) -> State:
    """Steps on gradients that are a function of parameters and step."""
    for _ in range(count):
        chance = torch.Generator().manual_seed(state.step)
        for p in state.parameters:
            p.grad = p.detach() * 0.1 + torch.randn(p.shape, generator=chance)
        state.optimizer.step()
        state.step += 1
    return state


def kept(held: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, type, bytes or value) of all that an optimizer keeps, learning rates and names of groups included."""
    if isinstance(held, Tensor):
        yield path, (held.dtype, tuple(held.shape), held.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
    elif isinstance(held, dict):
        for name, one in held.items():
            yield from kept(one, f"{path}/{name}")
    elif isinstance(held, list | tuple):
        yield path, type(held)
        for i, one in enumerate(held):
            yield from kept(one, f"{path}/{i}")
    else:
        yield path, (type(held), held)


def whole(state: State) -> dict[str, object]:
    parameters = {f"parameter {i}": p for i, p in enumerate(state.parameters)}
    return dict(kept({**state.optimizer.state_dict(), **parameters}))


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*:UserWarning")
@pytest.mark.parametrize("name", BUILT)
def test_a_resumed_optimizer_is_the_unbroken_one_to_the_byte(name: str, tmp_path: Path) -> None:
    state = step(fresh(name), 5)
    checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and not damage
    again = fresh(name, seed=1)
    assert whole(again) != whole(state)
    checkpoint.load_checkpoint(found, again)
    assert whole(again) == whole(state)
    assert whole(step(again, 6)) == whole(step(state, 6))
    assert whole(step(again, 1)) != whole(state), "a step changes nothing: the test sees nothing"


@pytest.mark.parametrize("name", ["prodigy", "schedule-free", "odd"])
def test_without_the_groups_own_numbers_the_run_would_be_another(name: str, tmp_path: Path) -> None:
    """So that the test above would fail if they were left out."""
    state = step(fresh(name), 5)
    again = fresh(name, seed=1)
    groups = again.optimizer.state_dict()["param_groups"]
    again.optimizer.load_state_dict({**state.optimizer.state_dict(), "param_groups": groups})
    for mine, theirs in zip(again.parameters, state.parameters, strict=True):
        mine.data.copy_(theirs)
    step(again, 6), step(state, 6)
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(again.parameters, state.parameters, strict=True))


class Refused(torch.optim.SGD):
    """Keeps one thing more."""

    def __init__(self, groups: Any, held: object, where: str) -> None:
        super().__init__(groups, lr=0.1)
        group = self.param_groups[0]
        (self.state[group["params"][0]] if where == "state" else group)["more"] = held


@pytest.mark.parametrize("where, path", [("state", "state/0/more"), ("group", "param_groups/0/more")])
@pytest.mark.parametrize(
    "held, what",
    [
        ({1, 2}, "set"),
        (torch.Generator(), "Generator"),
        (torch.nn.functional.relu, "function"),
        (1j, "complex"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.complex128), "torch.complex128"),
        ([{"deep": object()}], "object"),
        ({(1, 2): 3}, "dict"),
    ],
    ids=lambda held: str(held)[:20],
)
def test_what_cannot_be_held_is_refused_by_name_and_nothing_is_written(
    held: object, what: str, where: str, path: str, tmp_path: Path
) -> None:
    state = fresh("sgd, bare")
    state.optimizer = Refused([{"params": state.parameters, "name": "unet"}], held, where)
    with pytest.raises(RunError, match="Refused cannot be saved") as caught:
        checkpoint.save_checkpoint(tmp_path / "checkpoints", state, IDENTITY, 1)
    assert path in caught.value.problem and what in caught.value.problem and caught.value.hint
    assert not (tmp_path / "checkpoints").exists()


def test_two_tensors_of_one_name_are_refused_rather_than_one_of_them_lost(tmp_path: Path) -> None:
    state = fresh("sgd, bare")
    state.optimizer.param_groups[0] |= {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    with pytest.raises(RunError, match="another of that name"):
        checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)


def test_a_checkpoint_of_another_format_is_refused_before_anything_changes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    checkpoint.save_checkpoint(tmp_path, step(fresh("adamw"), 1), IDENTITY, 1)
    monkeypatch.undo()
    found, again = checkpoint.newest(tmp_path)[0], fresh("adamw", seed=1)
    before = whole(again)
    assert found is not None
    with pytest.raises(RunError, match="another version of finetune"):
        checkpoint.load_checkpoint(found, again)
    assert whole(again) == before
