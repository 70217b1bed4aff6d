"""A checkpoint: whole or absent, and all of the state in it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.bench import bench
from support.photos import pictures
from support.runs import short, train
from torch import nn
from torch.testing import assert_close

from finetune import optimizers, recipe
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.errors import RunError
from finetune.families.base import components
from finetune.files import layouts
from finetune.files.inspection import inspect
from finetune.proof.export import convert
from finetune.proof.verify import verify
from finetune.training import checkpoint
from finetune.training.loop import State
from finetune.training.resume import differences

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


def test_what_is_resumed_is_what_was_held_against_the_manifest(tmp_path: Path) -> None:
    for n, folder in enumerate(("a", "b")):
        checkpoint.save_checkpoint(tmp_path / folder, step(fresh(seed=n)), IDENTITY, 1)
    found, _ = checkpoint.newest(tmp_path / "a")
    assert found is not None
    checkpoint.load_checkpoint(found, fresh())
    other = tmp_path / "b" / found.path.name / "optimizer.safetensors"
    os.replace(other, found.path / other.name)
    with pytest.raises(RunError, match=r"optimizer\.safetensors was changed"):
        checkpoint.load_checkpoint(found, fresh())


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def reload(folder: Path, state: State) -> State:
    found, damage = checkpoint.newest(folder)
    assert found is not None and not damage
    checkpoint.load_checkpoint(found, state)
    return state


# --- what is in it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_what_is_loaded_goes_on_like_what_was_saved(name: str, tmp_path: Path) -> None:
    state = step(fresh(name), 3)
    state.bad_steps = 2
    checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 2)
    again = reload(tmp_path, fresh(name, seed=1))
    assert (again.step, again.bad_steps) == (3, 2)
    assert_close(values(again), values(state), rtol=0, atol=0)
    # the two need not agree on how state is laid out in memory, but on what comes of it
    assert_close(values(step(again, 4)), values(step(state, 4)), rtol=0, atol=0)
    saved = [checkpoint.save_checkpoint(tmp_path / n, s, IDENTITY, 2) for n, s in (("a", state), ("b", again))]
    assert len({weights.payload_sha256(path / "optimizer.safetensors") for path in saved}) == 1


def test_a_running_mean_is_kept_beside_the_weights_and_missed_when_it_is_gone(tmp_path: Path) -> None:
    state = step(fresh(), 2)
    state.ema = [p.detach() + 1 for p in state.parameters]
    path = checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)
    again = fresh(seed=1)
    again.ema = [torch.zeros_like(p) for p in again.parameters]
    reload(tmp_path, again)
    assert_close(again.ema, state.ema, rtol=0, atol=0)
    assert_close(values(again), values(state), rtol=0, atol=0)
    (path / "mean.safetensors").unlink()
    found, damage = checkpoint.newest(tmp_path)
    assert found is None and damage == ["step-000002: mean.safetensors is missing"]


def test_saving_and_loading_change_neither_rates_nor_groups(tmp_path: Path) -> None:
    state = step(fresh())
    checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)
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
    checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)
    again = fresh()
    again.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    reload(tmp_path, again)
    assert again.scaler.state_dict()["scale"] == 512.0


def test_it_is_safetensors_and_json_and_says_what_the_run_was(tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(tmp_path, step(fresh(), 2), IDENTITY, 1)
    assert path.name == "step-000002"
    assert names(path) == ["manifest.json", "optimizer.safetensors", "state.json", "trainable.safetensors"]
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None and found[:3] == (path, 2, IDENTITY)


def test_other_parameters_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, step(fresh()), IDENTITY, 1)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    other = fresh(side=81)
    before = [p.clone() for p in values(other)]
    with pytest.raises(RunError, match="other parameters"):
        checkpoint.load_checkpoint(found, other)
    assert_close(values(other), before, rtol=0, atol=0)


def test_differences_name_what_changed_came_or_went() -> None:
    assert differences(IDENTITY, IDENTITY) == []
    assert differences(IDENTITY, {"base": "cd34", "adapter.rank": "4", "data.flip": "True"}) == [
        "base: was ab12, now cd34",
        "data.flip: was absent, now True",
    ]


# --- which are kept -------------------------------------------------------------------------------------------------


def test_the_last_so_many_are_kept_also_beyond_a_million_steps(tmp_path: Path) -> None:
    state = step(fresh())
    for number in (999_998, 999_999, 1_000_000, 1_000_001):
        state.step = number
        checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 2)
        found, _ = checkpoint.newest(tmp_path)
        assert found is not None and found.step == number
    assert names(tmp_path) == ["step-1000000", "step-1000001"]


def test_a_new_one_is_kept_beside_newer_ones_that_are_damaged(tmp_path: Path) -> None:
    state = step(fresh())
    for number in (2, 4, 6):
        state.step = number
        checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 3)
    for damaged in ("step-000004", "step-000006"):
        (tmp_path / damaged / "state.json").unlink()
    again = reload_oldest(tmp_path)
    again.step = 3
    checkpoint.save_checkpoint(tmp_path, again, IDENTITY, 1)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 3
    assert len(damage) == 2


def reload_oldest(folder: Path) -> State:
    found, _ = checkpoint.newest(folder)
    assert found is not None and found.step == 2
    state = fresh()
    checkpoint.load_checkpoint(found, state)
    return state


def test_saving_a_step_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    state = step(fresh())
    path = checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 2)
    (path / "manifest.json").unlink()
    assert checkpoint.newest(tmp_path)[0] is None
    checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 2)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and found[:3] == (path, 1, IDENTITY) and not damage


def test_what_is_not_a_checkpoint_is_neither_read_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "step-mine").mkdir()
    (tmp_path / "notes").write_text("mine")
    checkpoint.save_checkpoint(tmp_path, step(fresh()), IDENTITY, 1)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and not damage
    assert names(tmp_path) == ["notes", "step-000001", "step-mine"]


# --- whole or absent ------------------------------------------------------------------------------------------------


class Cut(Exception):
    """The power went."""


WRITES = {"open": 4, "fsync": 10, "replace": 4, "rename": 1}
"""calls into the file system that a save makes: each file is flushed, then all with their folder, then the rename"""
MOMENTS = [(call, n) for call, count in WRITES.items() for n in range(count)]
OLD = ("rmtree", 4)
"""removes the checkpoint before; those before it clear what an earlier try left, beside and set aside"""
MOMENTS += [("rmtree", 1), OLD]


@pytest.mark.parametrize(("call", "nth"), MOMENTS)
def test_cut_at_any_moment_a_save_leaves_the_old_one_or_the_new_one(
    call: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = step(fresh(), 2)
    checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)
    step(state, 2)
    home = {"open": Path, "replace": Path, "rename": Path, "fsync": os, "rmtree": shutil}[call]
    own, calls = getattr(home, call), iter(range(100))

    def cut(*a: object, **k: object) -> object:
        if (call != "open" or "wb" in a) and next(calls) == nth:
            raise Cut
        return own(*a, **k)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(home, call, cut)
        checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and not damage
    assert found.step == (4 if (call, nth) in (OLD, ("fsync", 9)) else 2)
    checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 1)
    assert names(tmp_path) == ["step-000004"]


FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut short", "missing"])
def test_a_damaged_one_is_named_and_the_one_before_is_found(name: str, damage: str, tmp_path: Path) -> None:
    state = step(fresh(side=4))
    for number in (5, 10):
        state.step = number
        checkpoint.save_checkpoint(tmp_path, state, IDENTITY, 2)
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
    path = checkpoint.save_checkpoint(tmp_path, step(fresh(side=4)), IDENTITY, 1)
    for content in (json.dumps([]), json.dumps("text"), "\0", "\udcff"):
        (path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert checkpoint.newest(tmp_path)[0] is None


def test_no_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") == (None, [])


# --- an adapter's checkpoint is a PEFT directory --------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at alpha / rank = 1 / 2, with a running mean."""
    root = tmp_path_factory.mktemp("run")
    changes = {"adapter__rank": 8, "adapter__alpha": 4.0, "adapter__components": ("denoiser", "text_encoder")}
    train(short(pictures(root / "data"), train__ema=0.5, **changes), root / "out")
    return root / "out"


def same(one: Path, other: Path) -> None:
    names = {n: () for n in layouts.read_adapter(other).modules}
    assert names and layouts.read_adapter(one, names).modules.keys() == names.keys()
    for name, change in layouts.read_adapter(other, names).modules.items():
        found = layouts.read_adapter(one, names).modules[name]
        assert (found.rank, found.scale) == (change.rank, change.scale) == (8, 0.5)
        assert_close(found.tensors(), change.tensors(), rtol=0, atol=0)


def test_a_checkpoint_is_read_as_the_adapter_that_a_run_exports_at_its_true_strength(
    trained: Path, tmp_path: Path
) -> None:
    last = trained / "checkpoints" / "step-000004"
    same(last, trained / "adapter" / "peft")  # the running mean
    assert layouts.adapter_in(last) == last / "ema"
    inspected = inspect(last)
    assert (inspected.problems, inspected.layout, inspected.ranks) == ((), "peft", {"8": len(inspected.modules)})
    assert {part.scale for part in inspected.modules} == {0.5}
    bare = Path(shutil.copytree(last, tmp_path / "without"))
    shutil.rmtree(bare / "ema")
    assert inspect(bare).tensors == 2 * len(inspected.modules)  # none is the optimizer's, which lies beside


def test_its_files_are_those_that_export_writes(trained: Path) -> None:
    last, exported = trained / "checkpoints" / "step-000004", trained / "adapter" / "peft"
    for component in ("unet", "text_encoder"):
        for name in (layouts.PEFT_CONFIG, layouts.PEFT_WEIGHTS):
            assert (last / component / name).is_file()
        ours, theirs = (folder / component / layouts.PEFT_CONFIG for folder in (last / "ema", exported))
        assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        payloads = [weights.payload_sha256(f / component / layouts.PEFT_WEIGHTS) for f in (last / "ema", exported)]
        assert payloads[0] == payloads[1]
        moving = weights.payload_sha256(last / component / layouts.PEFT_WEIGHTS)
        assert moving != payloads[0]  # the weights that training goes on from


def test_a_checkpoint_is_exported_verified_and_gone_on_from(trained: Path, tmp_path: Path) -> None:
    last = trained / "checkpoints" / "step-000004"
    assert convert(last, "universal", tmp_path / "a.safetensors", "pocket") < 1e-5
    names = {n: c.shape for n, c in layouts.read_adapter(trained / "adapter" / "peft").modules.items()}
    exported = layouts.read_adapter(next((trained / "adapter").glob("*.safetensors")), names)
    for name, change in layouts.read_adapter(tmp_path / "a.safetensors", names).modules.items():
        assert_close(change.delta(torch.empty(0)), exported.modules[name].delta(torch.empty(0)), rtol=0, atol=0)
    report = verify(last, "pocket")
    assert report.ok and report.alphas == {"4": report.hit}, report.problems
    second = bench("pocket", pictures(tmp_path / "data"), data__resolution=64, adapter__rank=8, adapter__init_from=last,
                   adapter__components=("denoiser", "text_encoder"), adapter__targets=("attn2.to_q", "attn2.to_v"),
                   adapter__text_encoder_targets="attention")  # fmt: skip
    begun = adapters.read_changes(components(second.family))
    for name, change in layouts.read_adapter(trained / "adapter" / "peft", names).modules.items():
        before = change.delta(torch.empty(0))
        assert_close(begun[name].delta(torch.empty(0)), before, rtol=0, atol=1e-7)


def test_a_loose_file_with_pefts_names_in_memory_and_no_alpha_is_refused(trained: Path, tmp_path: Path) -> None:
    """What checkpoints were until format 2: at rank 8 and alpha 4 it was taken for twice as strong as it is."""
    file = trained / "checkpoints" / "step-000004" / "unet" / layouts.PEFT_WEIGHTS
    stem = "base_model.model."
    old = {"unet." + k.removeprefix(stem).replace(".weight", ".default.weight"): t for k, t in load_file(file).items()}
    weights.write_tensors(old, tmp_path / "trainable.safetensors", {})
    found = layouts.read_adapter(tmp_path / "trainable.safetensors")
    assert not found.modules and found.problems and all("its strength is not known" in p for p in found.problems)
    raw = sorted({k.partition(".lora_")[0] for k in old})
    weights.write_tensors(old | {f"{r}.alpha": torch.tensor(4.0) for r in raw}, tmp_path / "b.safetensors", {})
    told = layouts.read_adapter(tmp_path / "b.safetensors")
    assert told.problems == () and {change.scale for change in told.modules.values()} == {0.5}


def test_a_checkpoint_of_the_format_before_is_resumed(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    one, other = (bench("pocket", data, data__resolution=64, train__ema=0.5) for _ in range(2))
    one.train(1)
    path = checkpoint.save_checkpoint(tmp_path / "checkpoints", one.state, IDENTITY, 1)
    shutil.rmtree(path / "unet")
    shutil.rmtree(path / "ema")
    named = one.named()
    weights.write_tensors(named, path / "trainable.safetensors", {})
    weights.write_tensors(dict(zip(named, one.state.ema or (), strict=True)), path / "mean.safetensors", {})
    content = json.loads((path / "state.json").read_text()) | {"format": 2}
    (path / "state.json").write_text(json.dumps(content))
    written = ("trainable.safetensors", "mean.safetensors", "optimizer.safetensors", "state.json")
    manifest = {name: weights.file_sha256(path / name) for name in written}
    (path / "manifest.json").write_text(json.dumps(manifest))
    reload(tmp_path / "checkpoints", other.state)
    assert_close(other.weights(), one.weights(), rtol=0, atol=0)
    assert_close(other.state.ema, one.state.ema, rtol=0, atol=0)
    assert [s.loss for s in other.train()] == [s.loss for s in one.train()]


def test_an_adapter_of_other_parameters_is_refused(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    one = bench("pocket", data, data__resolution=64)
    for changes in ({"adapter__targets": ("to_q",)}, {"adapter__rank": 2}):
        checkpoint.save_checkpoint(tmp_path / "checkpoints", one.state, IDENTITY, 1)
        other = bench("pocket", data, data__resolution=64, **changes)
        with pytest.raises(RunError, match="other parameters"):
            reload(tmp_path / "checkpoints", other.state)
