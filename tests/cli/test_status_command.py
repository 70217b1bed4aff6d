"""`finetune status`: one run in full, several as a table, followed until they end; at once, and without torch."""

import json
import shlex
from pathlib import Path

import pytest
from support.command import answered, said
from support.logs import logged_run, one_step

from finetune.cli import status_view
from finetune.events import Score, Scored
from finetune.reporting.jsonl import JsonLines
from finetune.reporting.owner import Ownership

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "PIL", "matplotlib", "jinja2"}


def run_of(folder: Path, outcome: str = "running", reason: str = "", steps: int = 3) -> Path:
    scores = {"likeness": Score(0.5, 0.4, 0.6), "diversity": Score(0.9, 0.9, 0.9)}
    told = [*(one_step(n, 0.25) for n in range(1, steps + 1)), Scored(2, "3/4", scores)]
    return logged_run(folder, *told, outcome=outcome, reason=reason)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Path()


def test_it_answers_at_once_and_without_torch(here):
    run_of(here / "runs/mug")
    done = answered("status")
    assert done.exit_code == 0 and not {name.partition(".")[0] for name in done.modules} & HEAVY, done.stderr
    assert "cut off" in done.stdout and len(done.modules) < 900


def test_a_run_that_was_killed_is_told_from_one_that_goes_on_and_says_how_to_go_on(here, capsys):
    folder = run_of(here / "runs/my mug")
    code, out, err = said(capsys, "status", folder)
    assert (code, err) == (0, "") and "cut off" in out and "3 of 100" in out and "0.2500" in out
    assert "step 2: seen in 3 of 4 prompts; likeness 0.50" in out and "diversity" not in out
    [command] = [line.partition("to go on")[2].strip() for line in out.splitlines() if "to go on" in line]
    assert shlex.split(command) == ["finetune", "train", str(folder / "recipe.toml"), "--out", str(folder), "--resume"]
    owner = Ownership(folder)
    owner.take()
    out = said(capsys, "status", folder)[1]
    owner.release()
    assert "running" in out and "--resume" not in out
    assert "3 of 100, 2.0 it/s, 48 s left" in out


def test_several_runs_are_a_table_with_the_way_on_below(here, capsys):
    run_of(here / "runs/a", outcome="done", steps=10)
    run_of(here / "runs/b", outcome="failed", reason="the disk is full")
    code, out, _ = said(capsys, "status")
    rows = out.splitlines()
    assert code == 0 and rows[0].split()[:3] == ["run", "state", "step"]
    assert rows[1].split()[:5] == ["runs/a", "done", "10", "of", "100"] and rows[2].split()[:2] == ["runs/b", "failed"]
    assert rows[3].startswith("to go on: finetune train runs/b/recipe.toml") and len(rows) == 4


def test_json_is_a_list_of_all_that_is_known(here, capsys):
    run_of(here / "runs/b", outcome="interrupted", reason="stopped after step 3")
    code, out, err = said(capsys, "status", "runs", "--json")
    [told] = json.loads(out)
    assert (code, err) == (0, "") and told["state"] == "interrupted" and told["scores"]["likeness"] == 0.5
    assert told["folder"] == "runs/b" and told["resume"].startswith("finetune train ") and told["owner"] is None


def test_no_run_is_an_error_that_says_what_to_name(here, capsys):
    code, out, err = said(capsys, "status")
    assert code == 2 and out == "" and "no run in ." in err and "name a run's folder" in err


def test_followed_without_a_terminal_it_writes_a_line_for_each_change_until_the_runs_end(here, capsys, monkeypatch):
    folder = run_of(here / "mug")
    owner, looks = Ownership(folder), []
    owner.take()

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            JsonLines(folder / "events.jsonl")(one_step(4, 0.25))
        if len(looks) == 3:
            (folder / "run.json").write_text('{"outcome": "done", "steps": 100}')
            owner.release()

    monkeypatch.setattr(status_view.time, "sleep", wait)
    code, out, err = said(capsys, "status", "mug", "--follow")
    lines = out.splitlines()
    assert (code, err) == (0, "") and looks == [status_view.EVERY_PLAIN_S] * 3
    assert [line.split("  ")[:2] for line in lines] == [
        ["mug: running", "3 of 100"], ["mug: running", "4 of 100"], ["mug: done", "4 of 100"],
    ]  # fmt: skip


def test_ctrl_c_ends_the_look_cleanly_and_leaves_the_run_alone(here, capsys, monkeypatch):
    folder = run_of(here / "mug")
    owner = Ownership(folder)
    owner.take()
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status_view.time, "sleep", ctrl_c)
    code, out, err = said(capsys, "status", "mug", "-f", "--json")
    assert (code, err) == (0, "") and json.loads(out)["state"] == "running"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    owner.release()


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (99, "99 s"), (720, "12 min"), (11100, "3 h 05 min")])
def test_a_time_is_said_as_a_person_says_it(seconds, text):
    assert status_view.duration(seconds) == text


def test_a_moment_that_a_clock_puts_into_the_future_is_now(monkeypatch):
    monkeypatch.setattr(status_view.time, "time", lambda: 1000.0)
    assert status_view.ago(1060.0) == "0 s ago" and status_view.ago(940.0) == "60 s ago"
