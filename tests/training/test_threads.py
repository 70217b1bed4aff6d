"""How many CPU threads a run uses: as many as torch takes, unless one is clearly faster here and now."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
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


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def run_of(data: Path, out: Path, seconds: dict[int, float], steps: int = 2, resume: bool = False) -> list[Event]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preflight, "time", Clock(seconds))
        return begin(short(data, train__steps=6), out, steps, resume)


def told(out: Path) -> int:
    return int(json.loads((out / "run.json").read_text())["threads"])


BUSY, IDLE = {1: 1.0, 2: 30.0}, {1: 1.4, 2: 1.0}


def test_one_thread_is_used_where_two_wait_for_each_other(data: Path, tmp_path: Path) -> None:
    computed, accumulate = list[int](), trainer.accumulate

    def counted(*some: object) -> object:
        computed.append(torch.get_num_threads())
        return accumulate(*some)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "accumulate", counted)
        seen = run_of(data, tmp_path / "out", BUSY)
    assert computed == [2, 2, 1, 1, 1] and told(tmp_path / "out") == 1
    assert any(isinstance(e, Note) and e.text.startswith("one CPU thread takes less time") for e in seen)
    assert torch.get_num_threads() == 2


def test_else_as_many_as_there_are(data: Path, tmp_path: Path) -> None:
    seen = run_of(data, tmp_path / "out", IDLE)
    assert told(tmp_path / "out") == 2 and not any("one CPU thread" in str(e) for e in seen if isinstance(e, Note))


@pytest.mark.parametrize(("first", "then", "number"), [(BUSY, IDLE, 1), (IDLE, BUSY, 2)])
def test_a_run_that_goes_on_keeps_its_number(
    data: Path, tmp_path: Path, first: dict[int, float], then: dict[int, float], number: int
) -> None:
    run_of(data, tmp_path / "out", first)
    run_of(data, tmp_path / "out", then, steps=4, resume=True)
    assert told(tmp_path / "out") == number


def test_the_users_own_number_is_not_questioned(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run_of(data, tmp_path / "out", BUSY)
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

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Stop):
        patched.setattr(preflight, "time", Clock(BUSY))
        train(short(data), tmp_path / "out", listen)
    assert torch.get_num_threads() == 2
