"""A whole run: where it may write, what stops it, what it leaves, and that looking at it changes nothing."""

import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from support.bases import tiny_base
from support.command import ran
from support.photos import photos
from support.runs import Listen, Stop, begin, saved_bytes, short, steps, stop_if, train
from torch.testing import assert_close
from typer.main import get_command
from typer.testing import CliRunner

from finetune import recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.cli import app, training_view
from finetune.cli.options import Output
from finetune.cli.wording import written
from finetune.errors import DataError, FinetuneError, Interrupted, MemoryShortage, RunError, TrainError
from finetune.evaluation import effect as evaluate
from finetune.events import Event, Finished, Note, Sampled, Stage, Stepped, Validated
from finetune.families.base import Family, Moments, components
from finetune.families.sd import StableDiffusion
from finetune.machine import Device, Ranks
from finetune.planning import plan as planning
from finetune.planning.plan import Plan
from finetune.proof import export
from finetune.recipe import Adapter, FullWeights, Loaded, LoRA
from finetune.training import begin as beginning
from finetune.training import checkpoint, preflight, run
from finetune.training import loop as trainer
from finetune.training import samples as pictures
from finetune.training.batches import Batches, StepBatches
from finetune.training.finish import final_sheet
from finetune.training.loop import State

LENGTH = 40
BIN = [sys.executable, "-m", "finetune"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos") / "raw", ((64, 64), (64, 60)))


@pytest.fixture(autouse=True)
def quick_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LEVELS", (0.5,))


class Done(NamedTuple):
    out: Path
    result: Finished
    events: list[Event]
    loaded: Loaded


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A whole run, with samples at its beginning and its end."""
    out = tmp_path_factory.mktemp("finished") / "mug run"
    loaded = short(data, train__steps=LENGTH, train__checkpoint_every=100, sample__every=LENGTH)
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluate, "LEVELS", (0.5,))
        result = train(loaded, out, events.append)
    return Done(out, result, events, loaded)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outcome(out: Path) -> str:
    """And why, where it did not end well."""
    told = json.loads((out / "run.json").read_text())
    assert told["picked_step"] is None and bool(told["reason"]) == (told["outcome"] in ("interrupted", "failed"))
    return f"{told['outcome']} {told['reason']}".strip()


def refused(loaded: Loaded, out: Path, kind: type[FinetuneError], resume: bool = False) -> FinetuneError:
    """The error, when not one step was taken."""

    def listen(event: Event) -> None:
        assert not isinstance(event, Stepped)

    with pytest.raises(kind) as found:
        train(loaded, out, listen, resume)
    return found.value


# --- what it leaves -------------------------------------------------------------------------------------------------


def test_a_finished_run_leaves_the_folders_that_are_promised(finished: Done) -> None:
    assert outcome(finished.out) == "done"
    for name in ("recipe.toml", "run.json", "sheet.png", "adapter/mug.safetensors", "adapter/mug.json", "adapter/peft",
                 "adapter/README.md", f"checkpoints/step-{LENGTH:06d}", "samples/step-000000/00.png"):  # fmt: skip
        assert (finished.out / name).exists(), name
    assert not list(finished.out.rglob(".*"))


def test_resuming_a_finished_run_exports_the_same_file_again(finished: Done, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "again"))
    shutil.rmtree(out / "adapter")
    events: list[Event] = []
    result = train(finished.loaded, out, events.append, resume=True)
    assert weights.payload_sha256(result.path) == weights.payload_sha256(finished.result.path)
    assert not [e for e in events if isinstance(e, Stepped)]
    assert outcome(out) == "done"


# --- where it may write ---------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused_with_both_ways_out_and_untouched(finished: Done) -> None:
    before = contents(finished.out)
    error = refused(finished.loaded, finished.out, RunError)
    assert "holds a run already" in error.problem
    assert "`resume`" in error.hint and f"{finished.out}-2" in error.hint
    assert contents(finished.out) == before


def test_by_the_command_too_nothing_is_written(finished: Done) -> None:
    before = contents(finished.out)
    with pytest.raises(RunError):
        training_view.train(finished.loaded, finished.out, False, Output())
    assert contents(finished.out) == before


def test_a_folder_with_something_else_in_it_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    error = refused(short(data), tmp_path, RunError)
    assert "is not empty" in error.problem and "another `out`" in error.hint
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_file_in_place_of_the_folder_is_refused(data: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    error = refused(short(data), tmp_path / "file" / inside, RunError)
    assert str(tmp_path / "file") in error.problem and "another `out`" in error.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(data: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot write into" in refused(short(data), tmp_path / "out", RunError).problem
    tmp_path.chmod(0o700)


def full_by_count(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))  # type: ignore[attr-defined]


def full_by_trial(patched: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    patched.setattr(os, "posix_fallocate", no_room)


def read_only(patched: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    patched.setattr(Path, "mkdir", refuse)


@pytest.mark.parametrize("disk", [full_by_count, full_by_trial, read_only])
def test_a_disk_without_room_is_found_before_the_first_step(
    disk: Callable[[pytest.MonkeyPatch], None], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = short(data)
    with monkeypatch.context() as patched:
        disk(patched)
        error = refused(loaded, tmp_path / "out", RunError)
    assert str(tmp_path / "out") in error.problem and "free some space" in error.hint
    assert not contents(tmp_path)


def test_a_disk_that_fills_while_training_costs_no_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", weights.write_bytes

    def full_at_4(content: bytes, path: Path, flush: bool = True) -> None:
        if path.parent.name.startswith(".step-000004") and path.name == "optimizer.safetensors":
            raise OSError(28, "No space left on device")
        write(content, path, flush)

    monkeypatch.setattr(weights, "write_bytes", full_at_4)
    with pytest.raises(RunError, match=r"cannot save step 4 .*No space left") as stopped:
        train(short(data, train__steps=6), out)
    assert "resume=True" in stopped.value.advice
    found, damage = checkpoint.newest(out / "checkpoints")
    assert found is not None and found.step == 2 and not damage
    assert outcome(out).startswith("failed cannot save step 4")


# --- stopped by the user --------------------------------------------------------------------------------------------


def ctrl_c(when: Callable[[Event], bool], number: int = signal.SIGINT) -> Listen:
    def listen(event: Event) -> None:
        if when(event):
            os.kill(os.getpid(), number)

    return listen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_computes_waits_for_the_step_whoever_reads(
    data: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a plain loop reads, which handles no signal itself."""
    step, seen = Batches.step, list[int]()

    def interrupted(batches: Batches, k: int, ranks: Ranks) -> StepBatches:
        if k == 2:
            os.kill(os.getpid(), number)
        return step(batches, k, ranks)

    monkeypatch.setattr(Batches, "step", interrupted)
    with pytest.raises(Interrupted, match="after step 3; the state is saved"):
        for event in run.run(short(data, train__steps=6), tmp_path / "out"):
            seen += [event.step] if isinstance(event, Stepped) else []
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_loop_saves_the_step_and_says_how_to_go_on(data: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "my run"
    loaded = short(data, train__steps=6)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        train(loaded, out, ctrl_c(lambda e: isinstance(e, Stepped) and e.step == 3, number))
    assert signal.getsignal(number) is before
    assert stopped.value.exit_code == 130
    assert "after step 3" in stopped.value.problem and "saved" in stopped.value.problem
    assert stopped.value.action is not None
    words = shlex.split(written(stopped.value.action, get_command(app)))
    assert words == ["finetune", "train", str(out / "recipe.toml"), "--out", str(out), "--resume"]
    found, _ = checkpoint.newest(out / "checkpoints")
    assert found is not None and found.step == 3
    assert outcome(out).startswith("interrupted stopped")
    begin(loaded, tmp_path / "whole", 6)
    begin(recipe.load(out / "recipe.toml"), out, 6, resume=True)
    assert saved_bytes(out, 6) == saved_bytes(tmp_path / "whole", 6)


def test_a_signal_while_the_last_samples_are_made_is_heard(data: Path, tmp_path: Path) -> None:
    loaded = short(data, sample__every=4, train__steps=4)
    with pytest.raises(Interrupted, match="after step 4; the state is saved"):
        train(loaded, tmp_path / "out", ctrl_c(lambda e: isinstance(e, Sampled) and e.step == 4))


@pytest.mark.parametrize("stage", ["encoding images", "encoding captions"])
def test_stopped_before_the_first_step_the_same_command_works_again(data: Path, tmp_path: Path, stage: str) -> None:
    out, loaded = tmp_path / "out", short(data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_view, "Screen", lambda _: _Ctrl(stage))
        with pytest.raises(Interrupted, match="before the first") as stopped:
            training_view.train(loaded, out, False, Output())
    assert stopped.value.exit_code == 130 and stopped.value.hint == "start it again"
    assert sorted(contents(out)) == ["events.jsonl"]
    begin(loaded, out, 2)


def test_stopped_between_the_recipe_and_the_first_step_the_printed_command_works(data: Path, tmp_path: Path) -> None:
    out, loaded = tmp_path / "out", short(data)
    with pytest.raises(Interrupted, match="before the first") as stopped:
        train(loaded, out, ctrl_c(lambda e: isinstance(e, Note) and "pre-flight" in e.text))
    assert "resume=True" in stopped.value.advice
    seen = begin(recipe.load(out / "recipe.toml"), out, 2, resume=True)
    assert [e.step for e in seen if isinstance(e, Stepped)] == [1, 2]


class _Ctrl:
    """A screen whose reader presses Ctrl-C when a stage begins."""

    def __init__(self, stage: str) -> None:
        self.listen = ctrl_c(lambda e: isinstance(e, Stage) and e.name == stage)

    def __call__(self, event: Event) -> None:
        self.listen(event)

    def close(self) -> None: ...


CTRL_C_IN_THE_FIRST_STEP = """
import os, signal
from finetune import cli
cli.hush()
from finetune.training import loop as trainer
train = trainer.train
def interrupted(*arguments):
    for step in train(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        yield step
trainer.train = interrupted
cli.main()
"""
"""the real command, and the signal that a terminal sends it, on time on any machine"""


def test_ctrl_c_at_the_command_exits_130_and_its_printed_command_ends_with_the_same_bytes(
    finished: Done, tmp_path: Path
) -> None:
    out, plan = tmp_path / "out", tmp_path / "mug.toml"
    # more steps than wanted: that the rest is dropped after is one more thing to go on with
    plan.write_text(recipe.dumps(recipe.replace(finished.loaded.recipe, train__steps=5000, sample__every=0)))
    done = ran("train", plan, "--out", out, code=CTRL_C_IN_THE_FIRST_STEP)
    said = done.stderr
    assert done.returncode == 130, said
    found, _ = checkpoint.newest(out / "checkpoints")
    assert found is not None and found.step == 1
    assert said.startswith("error: stopped after step")
    command, _, other = said.partition("try: ")[2].partition("\n  or: its adapter so far: ")
    assert shlex.split(other) == ["finetune", "export", "--from", f"{out}@1", "--base", "pocket"]
    command = shlex.split(command)
    assert command[0] == "finetune"
    again = CliRunner().invoke(app, [*command[1:], "--set", f"train.steps={LENGTH}"])
    assert again.exit_code == 0, again.output
    assert weights.payload_sha256(out / "adapter" / "mug.safetensors") == weights.payload_sha256(finished.result.path)


# --- numbers that are not finite ------------------------------------------------------------------------------------


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, float]]:
    """step (from 1) -> what its loss is multiplied with."""
    wanted: dict[int, float] = {}
    whole, error, now = Batches.step, trainer.squared_error, 0

    def watched(batches: Batches, step: int, ranks: Ranks) -> StepBatches:
        nonlocal now
        now = step + 1
        return whole(batches, step, ranks)

    def spoilt(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return error(output, target) * wanted.get(now, 1.0)

    monkeypatch.setattr(Batches, "step", watched)
    monkeypatch.setattr(trainer, "squared_error", spoilt)
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
    assert "not finite" in outcome(out)
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
    assert "no measurable effect" in outcome(out)


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
        monkeypatch.setattr(Batches, "step", lambda b, k, r: short_of() if k == 2 else whole(b, k, r))
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


def training_flags(family: Family) -> list[tuple[bool, bool, torch.dtype]]:
    return [(m.training, p.requires_grad, p.dtype) for c in components(family).values() for m in c.modules()
            for p in m.parameters(recurse=False)]  # fmt: skip


# --- looking changes nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full"])
def test_sampling_and_validation_do_not_disturb_training(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same losses, same bytes; modes, dtypes, what is trained and torch's random state as they were."""
    both = ("denoiser", "text_encoder")
    adapter = LoRA(rank=2, dropout=0.3, components=both) if method == "lora" else FullWeights(components=both)
    base = "pocket" if method == "lora" else str(tiny_base(tmp_path / "base", "sd15"))
    loaded = short(data, base, adapter=adapter, validation__count=1, optimizer__learning_rate=1e-3)
    if method == "full":
        loaded = loaded._replace(recipe=recipe.replace(loaded.recipe, data__resolution=64))
    looked = loaded._replace(recipe=recipe.replace(loaded.recipe, validation__every=1, sample__every=1))
    blind = loaded._replace(recipe=recipe.replace(loaded.recipe, validation__every=1000, sample__every=0))
    observe, observed = run.observe, []

    def watched(one: run.Run, step: int) -> Iterator[Event]:
        before = training_flags(one.family), torch.get_rng_state()
        yield from observe(one, step)
        assert training_flags(one.family) == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        observed.append(1)

    monkeypatch.setattr(run, "observe", watched)
    seen = [begin(one, tmp_path / name, 4) for name, one in (("looked", looked), ("blind", blind))]
    assert len([e for e in seen[0] if isinstance(e, Sampled | Validated)]) == 8  # at steps 0 to 3
    assert len([e for e in seen[1] if isinstance(e, Sampled)]) == 0
    assert steps(seen[0]) == steps(seen[1])
    assert saved_bytes(tmp_path / "looked", 4) == saved_bytes(tmp_path / "blind", 4)


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


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_first_sample_is_the_bases_own_picture(finished: Done) -> None:
    """As stock diffusers makes it with the usual guidance, and as the final sheet shows it."""
    samples = finished.out / "samples"
    first = pixels(samples / "step-000000" / "00.png")
    assert np.array_equal(first, pixels(samples / "final-base" / "00.png"))
    stock = StableDiffusionPipeline.from_pretrained(shipped.POCKET).to(torch.float32)
    stock.set_progress_bar_config(disable=True)
    wanted = finished.loaded.recipe.sample
    made = stock(
        wanted.prompts[0], num_inference_steps=wanted.steps, guidance_scale=7.5, width=32, height=32,
        generator=torch.Generator().manual_seed(wanted.seed),
    ).images[0]  # fmt: skip
    assert np.abs(first - np.asarray(made.convert("RGB")).astype(int)).max() <= 1


def test_the_last_sample_of_the_live_model_is_what_the_file_draws(finished: Done) -> None:
    samples = finished.out / "samples"
    live, filed = (pixels(samples / name / "00.png") for name in (f"step-{LENGTH:06d}", "final-mug"))
    base = pixels(samples / "final-base" / "00.png")
    assert np.abs(filed - base).max() > 10  # it did something
    assert np.abs(live - filed).max() <= 1


def test_the_final_adapter_row_is_drawn_from_the_exported_file(finished: Done, tmp_path: Path) -> None:
    """Another file in its place gives another picture."""
    file = tmp_path / "adapter" / "mug.safetensors"
    file.parent.mkdir()
    tensors = {n: t * 3 if n.endswith("lora_up.weight") else t for n, t in load_file(finished.result.path).items()}
    weights.write_tensors(tensors, file, {})
    plan = planning.resolve_plan(finished.loaded)
    final_sheet(plan, file, tmp_path)
    shown = pixels(tmp_path / "samples" / "final-mug" / "00.png")
    assert not np.array_equal(shown, pixels(finished.out / "samples" / "final-mug" / "00.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.text["adapter_sha256"] == weights.file_sha256(file)  # type: ignore[attr-defined]


# --- full -----------------------------------------------------------------------------------------------------------


def test_all_of_a_denoiser_is_trained_saved_as_a_pipeline_and_read_back_equal(data: Path, tmp_path: Path) -> None:
    base, out = str(tiny_base(tmp_path / "base", "sd15")), tmp_path / "out"
    loaded = short(data, base, adapter=FullWeights(), optimizer__learning_rate=1e-3, data__resolution=64)
    result = train(loaded, out)
    assert result.path == out / "adapter" / "mug"
    again = UNet2DConditionModel.from_pretrained(result.path, subfolder="unet").state_dict()
    trained = load_file(out / "checkpoints" / "step-000004" / "trainable.safetensors")
    assert {f"unet.{n}" for n in again} == set(trained)
    assert_close({f"unet.{n}": t for n, t in again.items()}, trained, rtol=0, atol=0)
    own = UNet2DConditionModel.from_pretrained(base, subfolder="unet").state_dict()
    assert not (out / "checkpoints" / "step-000004" / "mean.safetensors").exists()
    assert not [p for p in result.path.rglob("*.json") if str(tmp_path) in p.read_text(encoding="utf-8")]
    text_file = result.path / "text_encoder" / "model.safetensors"
    # as transformers >= 5.6 writes an encoder that was made under it
    weights.write_tensors({n.removeprefix("text_model."): t for n, t in load_file(text_file).items()}, text_file, {})
    export.for_others(result.path)
    assert all(name.startswith("text_model.") for name in load_file(text_file))
    assert not any(torch.equal(own[n], t) for n, t in again.items() if t.ndim > 1)
    resumed = tmp_path / "resumed"
    with pytest.raises(Stop):
        train(loaded, resumed, lambda e: stop_if(isinstance(e, Stepped) and e.step == 3))
    begin(recipe.load(resumed / "recipe.toml"), resumed, 4, resume=True)
    assert saved_bytes(resumed, 4) == saved_bytes(out, 4)


def test_with_ema_it_is_the_mean_that_is_exported_and_the_last_weights_that_are_resumed(
    data: Path, tmp_path: Path
) -> None:
    base, out = str(tiny_base(tmp_path / "base", "sd15")), tmp_path / "out"
    loaded = short(
        data, base, adapter=FullWeights(), optimizer__learning_rate=1e-3, data__resolution=64, train__ema=0.9
    )
    result = train(loaded, out)
    written = UNet2DConditionModel.from_pretrained(result.path, subfolder="unet").state_dict()
    kept = out / "checkpoints" / "step-000004"
    mean, last = load_file(kept / "mean.safetensors"), load_file(kept / "trainable.safetensors")
    assert_close({f"unet.{n}": t for n, t in written.items()}, mean, rtol=0, atol=0)
    assert not any(torch.equal(mean[n], last[n]) for n in mean)


def test_with_ema_samples_on_the_way_show_the_mean(data: Path, tmp_path: Path) -> None:
    """The last of them is what the exported file draws, and the weights trained on are back in place after it."""
    loaded = short(data, train__ema=0.9, sample__every=2, optimizer__learning_rate=1e-2)
    out = tmp_path / "out"
    train(loaded, out)
    samples = out / "samples"
    live, filed = (pixels(samples / name / "00.png") for name in ("step-000004", "final-mug"))
    assert np.abs(filed - pixels(samples / "final-base" / "00.png")).max() > 10
    assert np.abs(live - filed).max() <= 1
    blind = short(data, train__ema=0.9, optimizer__learning_rate=1e-2)
    train(blind, tmp_path / "blind")
    assert saved_bytes(out, 4) == saved_bytes(tmp_path / "blind", 4)
