"""A run as a stream of events: what its reader gets, may do meanwhile, and loses by leaving."""

import atexit
import json
import signal
from pathlib import Path

import pytest
import torch
from support.photos import photos
from support.runs import saved_bytes, short, steps, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.events import (
    Advanced,
    Event,
    Finished,
    Sampled,
    Saved,
    Stage,
    Stepped,
    TrainingEffect,
    Validated,
    Verified,
)  # fmt: skip
from finetune.recipe import Loaded
from finetune.training import checkpoint, run
from finetune.training import loop as trainer
from finetune.training.begin import Run
from finetune.training.stop import Interruption

pytestmark = pytest.mark.filterwarnings("ignore:.*distutils.*:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos") / "raw", ((64, 64), (64, 60), (64, 64)))


def watched(data: Path, **changes: object) -> Loaded:
    """Looks at the model after each step, and saves only at the end."""
    looks = {"validation__count": 1, "validation__every": 1, "sample__every": 1, "train__checkpoint_every": 100}
    return short(data, train__ema=0.9, **looks, **changes)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """Read to the end, as a notebook would; at each event what the reader has in hand is as it was before."""
    out, events, before = tmp_path_factory.mktemp("whole") / "out", list[Event](), in_the_readers_hands()
    for event in run.run(watched(data), out):
        assert in_the_readers_hands() == before, event
        events.append(event)
    return out, events


def in_the_readers_hands() -> tuple[object, ...]:
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return *signals, torch.is_grad_enabled(), torch.backends.cuda.flash_sdp_enabled(), torch.is_inference_mode_enabled()


def test_the_last_event_is_the_result_with_its_proof_and_its_effect(whole: tuple[Path, list[Event]]) -> None:
    out, events = whole
    result = events[-1]
    assert isinstance(result, Finished) and result.step == 4 and result.path == out / "adapter" / "mug.safetensors"
    assert isinstance(result.report, Verified) and result.report in events
    assert result.report.path == result.path and result.report.hit == result.report.expected > 0
    assert isinstance(result.effect, TrainingEffect) and result.effect in events
    assert result.effect.weights["unet"] > 0 and result.effect.output > 0 and result.sheet.is_file()


def test_the_run_itself_writes_its_log_and_its_curves(whole: tuple[Path, list[Event]]) -> None:
    out, events = whole
    rows = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert len(rows) == len([e for e in events if not isinstance(e, Advanced)]) and rows[-1]["event"] == "finished"
    assert [r["loss"] for r in rows if r["event"] == "stepped"] == [loss for _, loss, *_ in steps(events)]
    curves = EventAccumulator(str(out / "tensorboard")).Reload().Scalars("loss/train")
    assert [c.step for c in curves] == [1, 2, 3, 4]


LAST = {"stepped": Stepped, "validated": Validated, "sampled": Sampled}


@pytest.mark.parametrize("kind", LAST)
def test_a_reader_who_leaves_loses_no_step(
    kind: str, data: Path, tmp_path: Path, whole: tuple[Path, list[Event]]
) -> None:
    """At whatever event: the step is saved as it was, not as its running mean, and the run goes on to the same end."""
    out = tmp_path / "out"
    for event in run.run(watched(data), out):
        if isinstance(event, LAST[kind]) and event.step == 2:
            break
    found, damage = checkpoint.newest(out / "checkpoints")
    assert found is not None and found.step == 2 and not damage
    assert json.loads((out / "events.jsonl").read_text().splitlines()[-1])["event"] == "saved"
    told = json.loads((out / "run.json").read_text())
    assert (told["outcome"], told["reason"]) == ("interrupted", "left by its reader")
    train(watched(data), out, resume=True)
    assert saved_bytes(out, 4) == saved_bytes(whole[0], 4)
    assert json.loads((out / "run.json").read_text())["outcome"] == "done"


def test_leaving_before_the_first_step_or_after_a_save_writes_no_checkpoint(data: Path, tmp_path: Path) -> None:
    loaded = short(data)
    for event in run.run(loaded, tmp_path / "early"):
        if isinstance(event, Stage) and event.name == "training":
            break
    assert not (tmp_path / "early" / "checkpoints").exists()
    events = run.run(loaded, tmp_path / "late")
    saved = next(e for e in events if isinstance(e, Saved))
    before = saved.path.stat().st_mtime_ns
    events.close()
    assert saved.path.stat().st_mtime_ns == before and len(list(saved.path.parent.iterdir())) == 1


def test_a_reader_who_leaves_can_use_the_modules_that_were_trained(data: Path, tmp_path: Path) -> None:
    """The last weights are in place, no mode of torch is left on, and a step can be taken."""
    loaded, kept = watched(data), list[Run]()
    begun = run.beginning

    def noted(*a: object) -> object:
        kept.append((yield from begun(*a)))  # type: ignore[arg-type]
        return kept[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "beginning", noted)
        for event in run.run(loaded, tmp_path / "out"):
            if isinstance(event, Sampled) and event.step == 2:
                break
    (one,) = kept
    saved = checkpoint.newest(tmp_path / "out" / "checkpoints")[0]
    assert saved is not None
    mine = [p.detach().clone() for p in one.state.parameters]
    checkpoint.load_checkpoint(saved, one.state)
    assert all(torch.equal(a, b) for a, b in zip(mine, one.state.parameters, strict=True))
    assert next(trainer.train(one.state, one.data.batches, one.plan.recipe, one.device)).number == 3


def test_a_program_that_ends_with_a_run_left_open_saves_its_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    events = run.run(short(data, train__checkpoint_every=100), tmp_path / "out")
    next(e for e in events if isinstance(e, Stepped))
    (leave,) = at_exit
    leave()  # type: ignore[operator]
    found, _ = checkpoint.newest(tmp_path / "out" / "checkpoints")
    assert found is not None and found.step == 1
    assert list(events) == [] == at_exit


def test_a_second_ctrl_c_by_the_reader_stops_at_once(data: Path, tmp_path: Path) -> None:
    """The first one waits for the step; what is thrown in while that is saved is not waited for."""
    stop = Interruption(tmp_path)
    with stop.deferred():
        stop.heard()
        assert stop.asked
        with pytest.raises(Exception, match="stopped before the first checkpoint"):
            stop.heard()
