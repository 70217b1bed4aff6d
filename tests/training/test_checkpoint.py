"""A checkpoint: whole or absent, and all of the state in it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from finetune import optimizers, recipe
from finetune import tensors as weights
from finetune.errors import RunError
from finetune.training import checkpoint
from finetune.training.loop import State

IDENTITY = {"base": "ab12", "adapter.rank": "4"}


def fresh(name: str = "adamw", side: int = 80, seed: int = 0) -> State:
    """Two components; the first is large enough for 8-bit state, the second is not."""
    chance = torch.Generator().manual_seed(seed)
    trainable = {
        "unet": {"to_q.lora_A": nn.Parameter(torch.randn(side, side, generator=chance))},
        "text_encoder": {"q.lora_A": nn.Parameter(torch.randn(3, 5, generator=chance))},
    }
    groups = [(c, list(p.values()), 1e-2) for c, p in trainable.items()]
    return State(trainable, optimizers.build(recipe.optimizer(name), groups))


def step(state: State, count: int = 1) -> State:
    """Steps on gradients that are a function of the step."""
    for _ in range(count):
        chance = torch.Generator().manual_seed(state.step)
        for p in state.parameters:
            p.grad = torch.randn(p.shape, generator=chance)
        state.optimizer.step()
        state.step += 1
    return state


def values(state: State) -> list[torch.Tensor]:
    return [p.detach() for p in state.parameters]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def reload(folder: Path, state: State) -> State:
    found, damage = checkpoint.newest(folder)
    assert found is not None and not damage
    checkpoint.load(found, state)
    return state


# --- what is in it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_what_is_loaded_goes_on_like_what_was_saved(name: str, tmp_path: Path) -> None:
    state = step(fresh(name), 3)
    state.bad_steps = 2
    checkpoint.save(tmp_path, state, IDENTITY, 2)
    again = reload(tmp_path, fresh(name, seed=1))
    assert (again.step, again.bad_steps) == (3, 2)
    assert_close(values(again), values(state), rtol=0, atol=0)
    # the two need not agree on how state is laid out in memory, but on what comes of it
    assert_close(values(step(again, 4)), values(step(state, 4)), rtol=0, atol=0)
    saved = [checkpoint.save(tmp_path / n, s, IDENTITY, 2) for n, s in (("a", state), ("b", again))]
    assert len({weights.payload_sha256(path / "optimizer.safetensors") for path in saved}) == 1


def test_a_running_mean_is_kept_beside_the_weights_and_missed_when_it_is_gone(tmp_path: Path) -> None:
    state = step(fresh(), 2)
    state.mean = [p.detach() + 1 for p in state.parameters]
    path = checkpoint.save(tmp_path, state, IDENTITY, 1)
    again = fresh(seed=1)
    again.mean = [torch.zeros_like(p) for p in again.parameters]
    reload(tmp_path, again)
    assert_close(again.mean, state.mean, rtol=0, atol=0)
    assert_close(values(again), values(state), rtol=0, atol=0)
    (path / "mean.safetensors").unlink()
    found, damage = checkpoint.newest(tmp_path)
    assert found is None and damage == ["step-000002: mean.safetensors is missing"]


def test_saving_and_loading_change_neither_rates_nor_groups(tmp_path: Path) -> None:
    state = step(fresh())
    checkpoint.save(tmp_path, state, IDENTITY, 1)
    again = fresh()
    for group in again.optimizer.param_groups:
        group["lr"] = 0.5  # a resumed run may have another length, and so other rates
    reload(tmp_path, again)
    assert [(g["name"], g["lr"]) for g in again.optimizer.param_groups] == [("unet", 0.5), ("text_encoder", 0.5)]


def test_the_scale_of_half_precision_is_kept(tmp_path: Path) -> None:
    state = step(fresh())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state.scaler.scale(torch.ones(1))
    state.scaler.update(512.0)
    checkpoint.save(tmp_path, state, IDENTITY, 1)
    again = fresh()
    again.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    reload(tmp_path, again)
    assert again.scaler.state_dict()["scale"] == 512.0


def test_it_is_safetensors_and_json_and_says_what_the_run_was(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, step(fresh(), 2), IDENTITY, 1)
    assert path.name == "step-000002"
    assert names(path) == ["manifest.json", "optimizer.safetensors", "state.json", "trainable.safetensors"]
    found, _ = checkpoint.newest(tmp_path)
    assert found == (path, 2, IDENTITY)


def test_other_parameters_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, step(fresh()), IDENTITY, 1)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    other = fresh(side=81)
    before = [p.clone() for p in values(other)]
    with pytest.raises(RunError, match="other parameters"):
        checkpoint.load(found, other)
    assert_close(values(other), before, rtol=0, atol=0)


def test_differences_name_what_changed_came_or_went() -> None:
    assert checkpoint.differences(IDENTITY, IDENTITY) == []
    assert checkpoint.differences(IDENTITY, {"base": "cd34", "adapter.rank": "4", "data.flip": "True"}) == [
        "base: was ab12, now cd34",
        "data.flip: was absent, now True",
    ]


# --- which are kept -------------------------------------------------------------------------------------------------


def test_the_last_so_many_are_kept_also_beyond_a_million_steps(tmp_path: Path) -> None:
    state = step(fresh())
    for number in (999_998, 999_999, 1_000_000, 1_000_001):
        state.step = number
        checkpoint.save(tmp_path, state, IDENTITY, 2)
        found, _ = checkpoint.newest(tmp_path)
        assert found is not None and found.step == number
    assert names(tmp_path) == ["step-1000000", "step-1000001"]


def test_a_new_one_is_kept_beside_newer_ones_that_are_damaged(tmp_path: Path) -> None:
    state = step(fresh())
    for number in (2, 4, 6):
        state.step = number
        checkpoint.save(tmp_path, state, IDENTITY, 3)
    for damaged in ("step-000004", "step-000006"):
        (tmp_path / damaged / "state.json").unlink()
    again = reload_oldest(tmp_path)
    again.step = 3
    checkpoint.save(tmp_path, again, IDENTITY, 1)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 3
    assert len(damage) == 2


def reload_oldest(folder: Path) -> State:
    found, _ = checkpoint.newest(folder)
    assert found is not None and found.step == 2
    state = fresh()
    checkpoint.load(found, state)
    return state


def test_saving_a_step_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    state = step(fresh())
    path = checkpoint.save(tmp_path, state, IDENTITY, 2)
    (path / "manifest.json").unlink()
    assert checkpoint.newest(tmp_path)[0] is None
    checkpoint.save(tmp_path, state, IDENTITY, 2)
    assert checkpoint.newest(tmp_path) == ((path, 1, IDENTITY), [])


def test_what_is_not_a_checkpoint_is_neither_read_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "step-mine").mkdir()
    (tmp_path / "notes").write_text("mine")
    checkpoint.save(tmp_path, step(fresh()), IDENTITY, 1)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and not damage
    assert names(tmp_path) == ["notes", "step-000001", "step-mine"]


# --- whole or absent ------------------------------------------------------------------------------------------------


class Cut(Exception):
    """The power went."""


WRITES = {"open": 4, "fsync": 5, "replace": 4, "rename": 1}
"""calls into the file system that a save makes"""
MOMENTS = [(call, n) for call, count in WRITES.items() for n in range(count)]
MOMENTS += [("rmtree", 1)]  # the first clears what an earlier try left


@pytest.mark.parametrize(("call", "nth"), MOMENTS)
def test_cut_at_any_moment_a_save_leaves_the_old_one_or_the_new_one(
    call: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = step(fresh(), 2)
    checkpoint.save(tmp_path, state, IDENTITY, 1)
    step(state, 2)
    home = {"open": Path, "replace": Path, "rename": Path, "fsync": os, "rmtree": shutil}[call]
    own, calls = getattr(home, call), iter(range(100))

    def cut(*a: object, **k: object) -> object:
        if (call != "open" or "wb" in a) and next(calls) == nth:
            raise Cut
        return own(*a, **k)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(home, call, cut)
        checkpoint.save(tmp_path, state, IDENTITY, 1)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and not damage
    assert found.step == (4 if call == "rmtree" or (call, nth) == ("fsync", 4) else 2)
    checkpoint.save(tmp_path, state, IDENTITY, 1)
    assert names(tmp_path) == ["step-000004"]


FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut short", "missing"])
def test_a_damaged_one_is_named_and_the_one_before_is_found(name: str, damage: str, tmp_path: Path) -> None:
    state = step(fresh(side=4))
    for number in (5, 10):
        state.step = number
        checkpoint.save(tmp_path, state, IDENTITY, 2)
    file = tmp_path / "step-000010" / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    found, said = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 5
    assert len(said) == 1 and said[0].startswith("step-000010: ")


def test_a_manifest_of_another_shape_is_damage(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, step(fresh(side=4)), IDENTITY, 1)
    for content in (json.dumps([]), json.dumps("text"), "\0", "\udcff"):
        (path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert checkpoint.newest(tmp_path)[0] is None


def test_no_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") == (None, [])
