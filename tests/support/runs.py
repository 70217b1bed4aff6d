"""Short whole runs on `pocket`: their recipe, where they are stopped, and what they told and saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from finetune import recipe
from finetune import tensors as weights
from finetune.errors import FinetuneError
from finetune.events import Event, Finished, Saved, Stepped
from finetune.families.base import Family, components
from finetune.recipe import Loaded, Recipe
from finetune.training import checkpoint, run
from finetune.training.stop import follow

Listen = Callable[[Event], None]


class Stop(Exception):
    """The test has seen enough."""


def short(data: Path, base: str = "pocket", **changes: object) -> Loaded:
    """Few steps at few pixels; `train__steps=3` sets train.steps."""
    small = Recipe.model_validate(
        {
            "name": "mug",
            "base": base,
            "data": {"path": data, "trigger": "sks", "resolution": 32},
            "adapter": {"rank": 2, "targets": ("attn2.to_q", "attn2.to_v")},
            "optimizer": {"learning_rate": 1e-2},
            "train": {"steps": 4, "checkpoint_every": 2, "precision": "fp32"},
            "sample": {"steps": 2, "prompts": ("a sks cup",)},
            "evaluate": {"count": 0},
        }
    )
    return Loaded(recipe.replace(small, **changes), {}, Path("short.toml"))


def unjudged(loaded: Loaded) -> Loaded:
    """A few steps learn nothing, and a run that learnt nothing is an error: for claims of another kind, no verdict."""
    if "evaluate" in loaded.recipe.model_fields_set:
        return loaded
    return loaded._replace(recipe=recipe.replace(loaded.recipe, evaluate__count=0))


def train(loaded: Loaded, out: Path, listen: Listen = lambda _: None, resume: bool = False) -> Finished:
    """The whole run; its last event."""
    last = follow(run.run(unjudged(loaded), out, resume), listen)
    assert isinstance(last, Finished)
    return last


def until(*last: Event | type[Event], seen: list[Event] | None = None) -> Listen:
    """A listener that stops the run at an event: one like it in all that is not None."""

    def listen(event: Event) -> None:
        if seen is not None:
            seen.append(event)
        if any(type(event) is type(wanted) and event[0] == wanted[0] for wanted in last):
            raise Stop

    return listen


def begin(loaded: Loaded, out: Path, saved: int, resume: bool = False) -> list[Event]:
    """Train until the checkpoint of that step is written. Returns all that was told."""
    seen: list[Event] = []
    with pytest.raises(Stop):
        train(loaded, out, until(Saved(saved, out), seen=seen), resume)
    return seen


def stop_if(so: bool) -> None:
    if so:
        raise Stop


def steps(events: list[Event]) -> list[tuple[int, float, float, dict[str, float]]]:
    return [(e.step, e.loss, e.grad_norm, e.rates) for e in events if isinstance(e, Stepped)]


def saved_bytes(out: Path, step: int) -> list[str]:
    """Digests of all that a checkpoint holds, the manifest and the identity excepted."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    return [weights.payload_sha256(path) for path in sorted(folder.rglob("*.safetensors"))]


class Done(NamedTuple):
    """A run that came to its end."""

    out: Path
    result: Finished
    events: list[Event]
    loaded: Loaded


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outcome(out: Path) -> str:
    """And the reason, where it did not end well."""
    told = json.loads((out / "run.json").read_text())
    return f"{told['outcome']} {told['reason']}".strip()


def refused(loaded: Loaded, out: Path, kind: type[FinetuneError], resume: bool = False) -> FinetuneError:
    """The error, when not one step was taken."""

    def listen(event: Event) -> None:
        assert not isinstance(event, Stepped)

    with pytest.raises(kind) as found:
        train(loaded, out, listen, resume)
    return found.value


def training_flags(family: Family) -> list[tuple[bool, bool, torch.dtype]]:
    return [(m.training, p.requires_grad, p.dtype) for c in components(family).values() for m in c.modules()
            for p in m.parameters(recurse=False)]  # fmt: skip


def newest(out: Path) -> int | None:
    found, damage = checkpoint.newest(out / "checkpoints")
    assert not damage
    return found.step if found else None
