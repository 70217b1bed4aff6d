"""Where a run stands, from its folder alone: going on, ended, or cut off."""

import json

import pytest
from support.logs import logged_run, one_step

from finetune.cli import status_view
from finetune.errors import RunError
from finetune.events import Resumed, Score, Scored, Stage
from finetune.reporting.owner import Ownership
from finetune.reporting.status import RunStatus, read_status, run_folders


@pytest.fixture
def alive(tmp_path):
    """A run at step 40 of 100, in this process."""
    folder = logged_run(tmp_path / "alive", Stage("training", 100), *map(one_step, range(1, 41)))
    owner = Ownership(folder)
    owner.take()
    yield folder
    owner.release()


def test_a_run_that_goes_on_says_how_far_it_is_how_fast_and_how_long_yet(alive):
    found = read_status(alive)
    assert (found.state, found.step, found.steps, found.stage) == ("running", 40, 100, "training")
    assert found.speed == pytest.approx(2) and found.seconds_left == pytest.approx(30)
    assert found.loss == 0.5 and found.resume is None and found.reason == "" and found.lives
    assert found.owner and found.owner.pid and found.updated == 1020


def test_a_run_whose_process_is_gone_stopped_without_a_word_and_can_be_resumed(tmp_path):
    found = read_status(logged_run(tmp_path / "run", *map(one_step, range(1, 41))))
    assert found.state == "cut off" and "killed" in found.reason and not found.lives
    assert found.resume and found.resume.arguments == {
        "recipe": tmp_path / "run/recipe.toml", "out": tmp_path / "run", "resume": True
    }  # fmt: skip
    assert found.seconds_left is None and found.stage == "" and found.step == 40


@pytest.mark.parametrize(
    "outcome, resumes", [("done", False), ("not learnt", False), ("interrupted", True), ("failed", True)]
)
def test_a_run_that_ended_says_how_and_why(tmp_path, outcome, resumes):
    found = read_status(logged_run(tmp_path / "run", one_step(1), outcome=outcome, reason="because"))
    assert found.state == outcome and bool(found.resume) == resumes
    assert found.reason == ("" if outcome == "done" else "because")


def test_a_run_that_is_opened_again_is_starting_whatever_it_ended_with_before(tmp_path):
    folder = logged_run(tmp_path / "run", one_step(1), outcome="interrupted", reason="stopped")
    owner = Ownership(folder)
    owner.take()
    assert (read_status(folder).state, read_status(folder).reason) == ("starting", "")
    owner.release()


def test_one_that_died_before_it_was_begun_cannot_be_resumed(tmp_path):
    found = read_status(logged_run(tmp_path / "run", Stage("encoding images", 6), begun=False))
    assert found.state == "cut off" and found.resume is None and found.steps == 0


def test_the_speed_is_that_since_the_run_was_resumed(tmp_path):
    early = [event for step in range(1, 11) for event in (one_step(step), Stage("evaluating", 1), Stage("x", 1))]
    found = read_status(logged_run(tmp_path / "run", *early, Resumed(10, tmp_path), *map(one_step, range(11, 15))))
    assert found.speed == pytest.approx(2)


def test_the_loss_is_a_mean_of_the_last_steps_and_leaves_out_what_is_no_number(tmp_path):
    losses = [9.0] * 20 + [float("nan"), *[0.1, 0.3] * 9, 0.2]
    found = read_status(logged_run(tmp_path / "run", *(one_step(n + 1, loss) for n, loss in enumerate(losses))))
    assert found.loss == pytest.approx(0.2)


def test_the_last_scores_and_what_there_is_to_look_at(tmp_path):
    folder = tmp_path / "run"
    scores = {"likeness": Score(0.5, 0.4, 0.6)}
    logged_run(folder, one_step(1), Scored(20, "3/4", {}), Scored(40, "4/4", scores))
    adapters = ["step-000020/m-step000020", "step-000040/m-step000040", "step-000040-abcd/m"]
    sheets = ["samples/step-000020.png", "samples/step-000040.png"]
    for name in (*sheets, *(f"candidates/{one}.safetensors" for one in adapters)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    found = read_status(folder)
    assert (found.scored_step, found.seen, found.scores) == (40, "4/4", {"likeness": 0.5})
    assert found.sheet == folder / "samples/step-000040.png" and found.page is None
    assert found.adapter == folder / "candidates/step-000040/m-step000040.safetensors"
    for name in ("sheet.png", "report.html", "adapter/m.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    found = read_status(folder)
    assert (found.sheet, found.page, found.adapter) == tuple(
        folder / name for name in ("sheet.png", "report.html", "adapter/m.safetensors")
    )


@pytest.mark.parametrize("damage", ["", "{", '{"outcome": 7, "steps": "x"}', "[1]", "\0"])
def test_damaged_files_are_no_reason_to_fail(tmp_path, damage):
    folder = logged_run(tmp_path / "run", one_step(1), Scored(1, "0/0", {}))
    (folder / "run.json").write_text(damage)
    with (folder / "events.jsonl").open("a") as log:
        log.write('{"event": "stepped", "time": 2, "step": 2, "loss": NaN}\n')
        log.write('{"event": "scored", "time": 1, "scores": 7, "step": 3}\n{"event": "stepped", "ti')
    found = read_status(folder)
    assert isinstance(found, RunStatus) and found.step == 2 and found.scores == {} and found.loss == 0.5
    assert json.loads(json.dumps(found.as_json()))["state"] == "cut off"


@pytest.mark.parametrize(
    "name, reason",
    [("events.jsonl", "stopped"), ("recipe.toml", "stopped"),
     ("run.json", "its process is gone, and run.json, which tells why, cannot be read")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_concluded_from_it(tmp_path, name, reason):
    folder = logged_run(tmp_path / "run", one_step(1), outcome="interrupted", reason="stopped")
    (folder / name).unlink()
    (folder / name).mkdir()
    found = read_status(folder)
    assert found.damage == (f"{name} cannot be read",) and found.reason == reason
    assert f"{name} cannot be read" in status_view.line(found)


def test_runs_are_found_beneath_a_folder_and_not_inside_of_each_other(tmp_path):
    for name in ("runs/b", "runs/a", "deep/er/c", "runs/a/candidates/inner", ".hidden/d", "so/very/deep/down/e"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    assert [str(p.relative_to(tmp_path)) for p in run_folders([tmp_path])] == ["deep/er/c", "runs/a", "runs/b"]
    assert run_folders([tmp_path / "runs/a", tmp_path / "runs"]) == [tmp_path / "runs/a", tmp_path / "runs/b"]
    (tmp_path / "none").mkdir()
    for place, said in (("none", "no run in"), ("nowhere", "there is no folder")):
        with pytest.raises(RunError, match=said):
            run_folders([tmp_path / place])
