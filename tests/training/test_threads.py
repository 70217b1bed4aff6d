"""How many CPU threads a run uses: as many as torch takes, unless one is clearly faster here and now."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.ranks import in_ranks
from support.runs import Stop, begin, short, train

from finetune.events import Event, Note, Stepped
from finetune.training import loop as trainer
from finetune.training import preflight


class Clock:
    """On which a step takes so many seconds by the number of threads that compute it."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now = seconds, 0.0

    def perf_counter(self) -> float:
        self.now += self.seconds[torch.get_num_threads()]
        return self.now


def apart(act: Callable[[], object], folder: Path, threads: str = "") -> object:
    """In a child with two threads, as torch's pool of threads cannot be forked once there is one. threads: what
    OMP_NUM_THREADS says."""

    def acted(_: int) -> object:
        os.environ.pop("OMP_NUM_THREADS", None)
        if threads:
            os.environ["OMP_NUM_THREADS"] = threads
        torch.set_num_threads(2)
        return act(), torch.get_num_threads()

    (one,) = in_ranks(1, acted, folder / "child", {"MASTER_PORT": ""})
    assert one.code == 0, one.said
    value, after = one.value  # type: ignore[misc]
    assert after == 2
    return value


def run_of(data: Path, out: Path, seconds: dict[int, float], steps: int = 2, resume: bool = False) -> list[Event]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preflight, "time", Clock(seconds))
        return begin(short(data, train__steps=6), out, steps, resume)


def told(out: Path) -> int:
    return int(json.loads((out / "run.json").read_text())["threads"])


BUSY, IDLE = {1: 1.0, 2: 30.0}, {1: 1.4, 2: 1.0}


def test_one_thread_is_used_where_two_wait_for_each_other(data: Path, tmp_path: Path) -> None:
    def act() -> object:
        computed, accumulate = list[int](), trainer.accumulate

        def counted(*some: object) -> object:
            computed.append(torch.get_num_threads())
            return accumulate(*some)  # type: ignore[arg-type]

        trainer.accumulate = counted  # type: ignore[assignment]
        return run_of(data, tmp_path / "out", BUSY), computed

    seen, computed = apart(act, tmp_path)  # type: ignore[misc]
    assert computed == [2, 2, 1, 1, 1] and told(tmp_path / "out") == 1
    assert any(isinstance(e, Note) and e.text.startswith("one CPU thread takes less time") for e in seen)


def test_else_as_many_as_there_are(data: Path, tmp_path: Path) -> None:
    seen = apart(lambda: run_of(data, tmp_path / "out", IDLE), tmp_path)
    assert isinstance(seen, list) and told(tmp_path / "out") == 2
    assert not any("one CPU thread" in e.text for e in seen if isinstance(e, Note))


@pytest.mark.parametrize(("first", "then", "number"), [(BUSY, IDLE, 1), (IDLE, BUSY, 2)])
def test_a_run_that_goes_on_keeps_its_number(
    data: Path, tmp_path: Path, first: dict[int, float], then: dict[int, float], number: int
) -> None:
    def act() -> None:
        run_of(data, tmp_path / "out", first)
        run_of(data, tmp_path / "out", then, steps=4, resume=True)

    apart(act, tmp_path)
    assert told(tmp_path / "out") == number


def test_the_users_own_number_is_not_questioned(data: Path, tmp_path: Path) -> None:
    apart(lambda: run_of(data, tmp_path / "out", BUSY), tmp_path, threads="2")
    assert told(tmp_path / "out") == 2


@pytest.mark.parametrize(
    ("took", "number"), [({2: 1.0}, 2), ({2: 1.4, 1: 1.0}, 2), ({2: 1.6, 1: 1.0}, 1), ({8: 1.0, 1: 3.0}, 8)]
)
def test_a_little_faster_is_not_enough(took: dict[int, float], number: int) -> None:
    assert preflight.faster_threads(took) == number


def test_threads_are_given_back_when_a_run_fails(data: Path, tmp_path: Path) -> None:
    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            raise Stop

    def act() -> None:
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Stop):
            patched.setattr(preflight, "time", Clock(BUSY))
            train(short(data), tmp_path / "out", listen)

    apart(act, tmp_path)
