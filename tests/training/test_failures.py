"""What stops a run by itself: numbers that are not finite, parts without a gradient, too little memory."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import Stop, begin, outcome, refused, short, stop_if, train, training_flags

from finetune.errors import DataError, MemoryShortage, TrainError
from finetune.events import Event, Stepped
from finetune.families.base import Family, Moments
from finetune.families.sd import StableDiffusion
from finetune.machine import Device
from finetune.planning.plan import Plan
from finetune.ranks import Ranks
from finetune.recipe import Adapter, FullWeights, LoRA
from finetune.training import begin as beginning
from finetune.training import checkpoint, objective, preflight
from finetune.training import loop as trainer
from finetune.training import samples as pictures
from finetune.training.batches import Batches, StepBatches
from finetune.training.loop import State

# --- numbers that are not finite ------------------------------------------------------------------------------------


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, float]]:
    """step (from 1) -> what its loss is multiplied with."""
    wanted: dict[int, float] = {}
    whole, error, now = Batches.step, objective.squared_error, 0

    def watched(batches: Batches, step: int, ranks: Ranks, even: bool = False) -> StepBatches:
        nonlocal now
        now = step + 1
        return whole(batches, step, ranks)

    def spoilt(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return error(output, target) * wanted.get(now, 1.0)

    monkeypatch.setattr(Batches, "step", watched)
    monkeypatch.setattr(objective, "squared_error", spoilt)
    yield wanted


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The state of each run that is begun."""
    found: list[State] = []
    attach = beginning.attach_adapter

    def kept(plan: Plan, family: Family, device: Device) -> State:
        found.append(attach(plan, family, device))
        return found[-1]

    monkeypatch.setattr(beginning, "attach_adapter", kept)
    return found


def snapshot(state: State) -> dict[str, torch.Tensor]:
    found = {f"p{i}": p.detach().clone() for i, p in enumerate(state.parameters)}
    for i, p in enumerate(state.parameters):
        found |= {f"{i}.{k}": torch.as_tensor(v).clone() for k, v in state.optimizer.state.get(p, {}).items()}
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(
    bad: float, data: Path, tmp_path: Path, spoil: dict[int, float], states: list[State]
) -> None:
    spoil[3] = bad
    seen: list[dict[str, torch.Tensor]] = []
    skipped: list[bool] = []

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            seen.append(snapshot(states[0]))
            skipped.append(event.skipped)
            stop_if(event.step == 4)

    with pytest.raises(Stop):
        train(short(data, train__checkpoint_every=100), tmp_path / "out", listen)
    assert skipped == [False, False, True, False]
    assert not same(seen[0], seen[1])
    assert same(seen[1], seen[2])
    assert not same(seen[2], seen[3])


def test_several_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(
    data: Path, tmp_path: Path, spoil: dict[int, float]
) -> None:
    spoil.update(dict.fromkeys((4, 6, 7, 9, 10, 11), float("nan")))
    out, taken = tmp_path / "out", []
    with pytest.raises(TrainError, match="not finite for 3 steps in a row, until step 11") as stopped:
        train(short(data, train__steps=20), out, lambda e: taken.append(e) if isinstance(e, Stepped) else None)
    assert stopped.value.exit_code == 4 and "learning_rate" in stopped.value.hint
    assert [e.step for e in taken] == list(range(1, 12))
    found, damage = checkpoint.newest(out / "checkpoints")
    assert found is not None and found.step == 8 and not damage  # 4, 6 and 10 were bad, 8 was good
    assert all(bool(t.isfinite().all()) for t in load_file(found.path / "unet" / "adapter_model.safetensors").values())
    assert outcome(out).startswith("failed the loss was not finite")
    assert not (out / "adapter").exists()


def test_a_latent_that_is_not_finite_names_its_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = StableDiffusion.encode_images, []

    def second_is_nan(self: StableDiffusion, pixels: torch.Tensor) -> Moments:
        calls.append(1)
        moments = encode(self, pixels)
        return Moments(moments.mean * float("nan"), moments.logvar) if len(calls) == 2 else moments

    monkeypatch.setattr(StableDiffusion, "encode_images", second_is_nan)
    error = refused(short(data, data__cache=tmp_path / "cache"), tmp_path / "out", DataError)
    assert error.problem.startswith("1.png: ") and error.hint
    monkeypatch.undo()
    begin(short(data, data__cache=tmp_path / "cache"), tmp_path / "out", 2)  # and the same command works again


@pytest.mark.parametrize("adapter", [LoRA(rank=2), FullWeights(components=("text_encoder",))], ids=["lora", "full"])
def test_a_run_that_changed_nothing_fails(adapter: Adapter, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    loaded = short(data, train__steps=1, optimizer__learning_rate=0.0, adapter=adapter)
    with pytest.raises(TrainError, match="no measurable effect") as stopped:
        train(loaded, out)
    assert stopped.value.exit_code == 4 and "learning_rate" in stopped.value.hint
    assert outcome(out).startswith("failed training had no measurable effect")


# --- pre-flight and memory ------------------------------------------------------------------------------------------


def test_a_part_that_gets_no_gradient_is_named_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach, dead = beginning.attach_adapter, []

    def with_a_dead_part(*a: object) -> State:
        state = attach(*a)  # type: ignore[arg-type]
        outer = [n for n in state.trainable["unet"] if "lora_B" in n]  # lora_A has no gradient yet: B is zero
        state.trainable["unet"][outer[2]].register_hook(torch.zeros_like)
        dead.append(f"unet: 1 of {len(outer)} trained parts get no gradient, {outer[2]} first")
        return state

    monkeypatch.setattr(beginning, "attach_adapter", with_a_dead_part)
    error = refused(short(data), tmp_path / "out", TrainError)
    assert error.exit_code == 4
    assert dead == [error.problem] and "adapter.targets" in error.hint


def test_an_adapter_that_changes_the_base_before_its_first_step_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = beginning.attach_adapter

    def disturbed(*a: object) -> State:
        state = attach(*a)  # type: ignore[arg-type]
        next(p for n, p in state.trainable["unet"].items() if "lora_B" in n).data += 0.1
        return state

    monkeypatch.setattr(beginning, "attach_adapter", disturbed)
    assert "before its first step" in refused(short(data), tmp_path / "out", TrainError).problem


def no_memory() -> torch.Tensor:
    return torch.empty(1 << 50)  # what the CPU's own allocator says


def no_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("short_of", [no_memory, no_device_memory])
@pytest.mark.parametrize("where", ["encode", "accumulate", "work"])
def test_too_little_memory_exits_3_with_what_to_turn(
    where: str, short_of: Callable[[], object], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While encoding, in the pre-flight, and at the third step."""
    out, whole = tmp_path / "out", Batches.step
    loaded = short(data, data__cache=tmp_path / "cache")
    if where == "encode":
        monkeypatch.setattr(StableDiffusion, "encode_images", lambda *_: short_of())
    elif where == "accumulate":
        monkeypatch.setattr(trainer, "accumulate", lambda *_: short_of())
    else:
        monkeypatch.setattr(Batches, "step", lambda b, k, *rest: short_of() if k == 2 else whole(b, k, *rest))
    with pytest.raises(MemoryShortage, match="memory") as stopped:
        train(loaded, out)
    assert stopped.value.exit_code == 3
    assert "train.gradient_checkpointing" in stopped.value.hint and "adamw8bit" in stopped.value.hint
    if where == "work":
        assert "at step 3" in stopped.value.problem
        found, _ = checkpoint.newest(out / "checkpoints")
        assert found is not None and found.step == 2


def test_a_fault_that_is_ours_is_not_taken_for_want_of_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ours(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Batches, "step", ours)
    with pytest.raises(RuntimeError, match="shapes"):
        train(short(data), tmp_path / "out")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_the_pre_flight_leaves_the_state_bit_for_bit_as_it_was(
    optimizer: str, data: Path, tmp_path: Path, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning, and on a resumed state with moments in it."""
    measure, seen = preflight.measure, []

    def watched(state: State, batches: Batches, *a: object) -> preflight.Measured:
        flags = partial(training_flags, batches.family)
        before = snapshot(state), state.step, flags(), state.optimizer.param_groups[0]["lr"]
        measured = measure(state, batches, *a)  # type: ignore[arg-type]
        assert same(snapshot(state), before[0])
        assert (state.step, flags(), state.optimizer.param_groups[0]["lr"]) == before[1:]
        assert all(p.grad is None and p.requires_grad for p in state.parameters)
        seen.append(len(before[0]))
        return measured

    monkeypatch.setattr(preflight, "measure", watched)
    loaded = short(data, optimizer__name=optimizer, adapter__rank=128)
    begin(loaded, tmp_path / "out", 2)
    begin(loaded, tmp_path / "out", 4, resume=True)
    assert seen[1] > seen[0] > 0


def test_a_sampler_that_fails_does_not_cost_the_steps_before_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = pictures.draw_samples
    monkeypatch.setattr(
        pictures, "draw_samples", lambda *a: no_device_memory() if calls.append(1) or len(calls) > 1 else draw(*a)
    )
    calls: list[int] = []
    with pytest.raises(MemoryShortage):
        train(short(data, sample__every=3, train__checkpoint_every=100), tmp_path / "out")
    found, _ = checkpoint.newest(tmp_path / "out" / "checkpoints")
    assert found is not None and found.step == 3
