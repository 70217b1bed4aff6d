"""Two runs cannot write into one folder: the second is refused while the first lives, and only so long."""

import errno
import os
from pathlib import Path

import pytest
from support.runs import refused, short, train

from finetune.errors import RunError
from finetune.events import Event, Finished, Stepped, Warned
from finetune.reporting import owner
from finetune.reporting.owner import LOCK, owner_of
from finetune.reporting.status import read_status
from finetune.training import run


def test_a_second_run_or_resume_is_refused_while_the_first_lives_and_then_goes_on(data: Path, tmp_path: Path) -> None:
    out, loaded = tmp_path / "out", short(data)
    events = run.run(loaded, out)
    assert any(isinstance(event, Stepped) and event.step == 2 for event in events)
    assert read_status(out).state == "running" and read_status(out).owner == owner_of(out)
    before = (out / "events.jsonl").read_bytes()
    for resume in (False, True):
        error = refused(loaded, out, RunError, resume)
        assert error.exit_code == 2 and f"process {os.getpid()} on {os.uname().nodename}" in error.problem
        assert "wait until it ends, stop it, or choose another" in error.advice
    assert (out / "events.jsonl").read_bytes() == before, "the refused left no trace in the log of the living one"
    events.close()
    assert read_status(out).state == "interrupted" and not (out / LOCK).exists()
    (out / LOCK).write_text('{"host": "killed", "pid": 1}')  # what a kill leaves
    assert isinstance(train(loaded, out, resume=True), Finished)
    assert read_status(out).state == "done" and not (out / LOCK).exists()


def test_a_run_that_is_refused_owns_nothing_after(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finetune.writing.reserve", full)
    assert "No space left" in refused(short(data), tmp_path / "new", RunError).problem
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    refused(short(data), tmp_path / "old", RunError)
    assert not list((tmp_path / "old").iterdir()) and owner_of(tmp_path / "old") is None


def test_a_disk_without_locks_is_warned_of_and_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "fcntl", None)
    events: list[Event] = []
    for event in run.run(short(data), tmp_path / "out"):
        events.append(event)
        if isinstance(event, Stepped):
            break
    assert [event for event in events if isinstance(event, Warned) and "no file locks" in event.text] == events[:1]
    assert "no file locks" in (tmp_path / "out" / "events.jsonl").read_text().splitlines()[0]
