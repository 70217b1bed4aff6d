"""A run's folder has one owner, which the system forgets when its process is killed."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import RunError
from finetune.reporting import owner
from finetune.reporting.owner import LOCK, Owner, Ownership, owner_of

RACER = """
import sys
from pathlib import Path
from finetune.errors import RunError
from finetune.reporting.owner import Ownership
assert "torch" not in sys.modules
sys.stdin.readline()  # all begin at once
try:
    Ownership(Path(sys.argv[1])).take()
    print("owner", flush=True)
except RunError as e:
    print(e, flush=True)
sys.stdin.readline()
"""


def racer(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    child.stdin.write("\n")
    child.stdin.flush()


def test_of_twenty_processes_that_want_a_folder_at_once_one_gets_it(tmp_path):
    children = [racer(tmp_path) for _ in range(20)]
    for child in children:
        go(child)
    said = [child.stdout.readline().strip() for child in children if child.stdout]
    assert said.count("owner") == 1
    winner = children[said.index("owner")]
    assert owner_of(tmp_path) == Owner(os.uname().nodename, winner.pid)
    refused = [text for text in said if text != "owner"]
    assert all("belongs to a run that is going on" in text for text in refused) and len(refused) == 19
    for child in children:
        child.communicate("\n")
    assert owner_of(tmp_path) is None


def test_a_killed_owner_is_forgotten_and_the_next_gets_in_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "_TRIES", 1)
    child = racer(tmp_path)
    go(child)
    assert child.stdout and child.stdout.readline() == "owner\n"
    mine = Ownership(tmp_path)
    with pytest.raises(RunError, match=f"process {child.pid} on {os.uname().nodename}") as refused:
        mine.take()
    assert refused.value.exit_code == 2 and "another `out`" in refused.value.advice
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.communicate()
    assert (tmp_path / LOCK).exists() and owner_of(tmp_path) is None
    assert mine.take() == "" and owner_of(tmp_path) == Owner(os.uname().nodename, os.getpid())
    mine.release()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_its_owner_removed_meanwhile_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Opened before, locked after the owner let go of it: the next process would lock another file of that name."""
    first, second, locked = Ownership(tmp_path), Ownership(tmp_path), owner._locked
    first.take()

    def late(descriptor: int, exclusive: bool) -> bool | None:
        first.release()
        return locked(descriptor, exclusive)

    monkeypatch.setattr(owner, "_locked", late)
    second.take()
    assert (tmp_path / LOCK).exists() and owner_of(tmp_path)
    with pytest.raises(RunError):
        Ownership(tmp_path).take()
    second.release()


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("without", [lambda m: m.setattr(owner.fcntl, "flock", no_locks),
                                     lambda m: m.setattr(owner, "fcntl", None)])  # fmt: skip
def test_a_disk_or_system_without_locks_is_said_and_stops_nothing(tmp_path, monkeypatch, without):
    without(monkeypatch)
    mine = Ownership(tmp_path)
    assert "has no file locks" in mine.take()
    assert owner_of(tmp_path) == Owner(os.uname().nodename, os.getpid()), "as long as the process lives"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / LOCK).write_text(json.dumps({"host": os.uname().nodename, "pid": ended.pid}))
    assert owner_of(tmp_path) is None
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": ended.pid}))
    assert owner_of(tmp_path) == Owner("elsewhere", ended.pid)
    mine.release()


@pytest.mark.parametrize("text", ["", "[]", '{"host": 1}', "{"])
def test_an_owner_who_is_still_writing_its_name_owns_it_already(tmp_path, text):
    mine = Ownership(tmp_path)
    mine.take()
    (tmp_path / LOCK).write_text(text)
    found = owner_of(tmp_path)
    assert found is not None and str(found) == "another process"
    mine.release()


def test_a_look_at_the_lock_is_in_the_way_of_no_owner_and_no_other_look(tmp_path, monkeypatch):
    looks = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    assert owner._locked(looks, exclusive=False)
    assert owner_of(tmp_path) is None
    monkeypatch.setattr(owner.time, "sleep", lambda _: os.close(looks))  # the look ends while it is waited for
    mine = Ownership(tmp_path)
    assert mine.take() == ""
    mine.release()
