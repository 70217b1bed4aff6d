"""A run that the user stops: the step is saved, and the command that is told goes on with the same bytes."""

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import ran
from support.runs import (
    Done,
    Listen,
    begin,
    contents,
    outcome,
    saved_bytes,
    short,
    train,
)
from typer.main import get_command
from typer.testing import CliRunner

from finetune import recipe
from finetune import tensors as weights
from finetune.cli import app, training_view
from finetune.cli.options import Output
from finetune.cli.wording import written
from finetune.errors import Interrupted
from finetune.events import Event, Note, Sampled, Stage, Stepped
from finetune.ranks import Ranks
from finetune.training import checkpoint, preflight, run
from finetune.training.batches import Batches, StepBatches
from finetune.training.stop import handled


def ctrl_c(when: Callable[[Event], bool], number: int = signal.SIGINT) -> Listen:
    def listen(event: Event) -> None:
        if when(event):
            os.kill(os.getpid(), number)

    return listen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_computes_waits_for_the_step_whoever_reads(
    data: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a plain loop reads, which handles no signal itself."""
    step, seen = Batches.step, list[int]()

    def interrupted(batches: Batches, k: int, ranks: Ranks, even: bool = False) -> StepBatches:
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
    assert stopped.value.other is not None and stopped.value.other[1].arguments["source"] == f"{out}@3"
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
    printed, _, other = said.partition("try: ")[2].partition("\n  or: its adapter so far: ")
    assert shlex.split(other) == ["finetune", "export", "--from", f"{out}@1", "--base", "pocket"]
    exported = [*shlex.split(other)[1:], "--out", str(tmp_path / "so far.safetensors")]
    assert CliRunner().invoke(app, exported).exit_code == 0
    command = shlex.split(printed)
    assert command[0] == "finetune"
    again = CliRunner().invoke(app, [*command[1:], "--set", f"train.steps={finished.result.step}"])
    assert again.exit_code == 0, again.output
    assert weights.payload_sha256(out / "adapter" / "mug.safetensors") == weights.payload_sha256(finished.result.path)


@pytest.mark.parametrize("made_of_it", ["swallowed", "wrapped"])
def test_a_signal_is_not_lost_in_code_of_others(
    data: Path, tmp_path: Path, made_of_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import inside another library may catch what the handler raised, or make an error of its own of it."""
    measure, out = preflight.measure, tmp_path / "out"

    def interrupted(*some: object) -> preflight.Measured:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Interrupted as e:
            if made_of_it == "wrapped":
                raise RuntimeError("failed to import") from e
        return measure(*some)  # type: ignore[arg-type]

    monkeypatch.setattr(preflight, "measure", interrupted)
    with pytest.raises(Interrupted):
        for event in run.run(short(data, train__steps=3), out):
            assert not isinstance(event, Stepped)
    if made_of_it == "swallowed":
        assert outcome(out).startswith("interrupted")


def test_a_closed_terminal_under_nohup_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(lambda *_: pytest.fail("heard")):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
