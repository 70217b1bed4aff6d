"""What the next steps need is made ahead: the same, bounded, its errors where they belong, and no thread left."""

import cProfile
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.bench import Bench, bench
from support.photos import SQUARE, WIDE, pictures
from torch import Tensor

from finetune.encoding.images import STRAIGHT
from finetune.errors import RunError
from finetune.planning.pools import Pool
from finetune.ranks import ALONE
from finetune.training import ahead as making
from finetune.training.ahead import Ahead, Copies
from finetune.training.batches import Batches

CROPS = (STRAIGHT, STRAIGHT._replace(flip=True))


class Maker:
    """Says of each step who made it."""

    def __init__(self, bad: int = -1, size: int = 1) -> None:
        self.made = dict[int, str]()
        self.bad, self.bytes = bad, size
        self.ahead = Ahead(self, lambda _: self.bytes)

    def __call__(self, step: int) -> int:
        self.made[step] = threading.current_thread().name
        if step == self.bad:
            raise RunError("it is gone", "resume")
        return 10 * step

    def settled(self) -> list[int]:
        """Steps that were made by a thread."""
        self.ahead.close()
        return sorted(step for step, name in self.made.items() if name.startswith("ahead"))


def test_steps_in_a_row_are_made_ahead_and_none_beyond_the_last() -> None:
    maker = Maker()
    assert [maker.ahead(step, 6) for step in range(6)] == [0, 10, 20, 30, 40, 50]
    assert maker.settled() == [1, 2, 3, 4, 5] and len(maker.made) == 6, "each once"


def test_a_run_that_goes_on_makes_what_follows_from_its_second_step_on() -> None:
    maker = Maker()
    assert [maker.ahead(step, 9) for step in (4, 5, 6)] == [40, 50, 60]
    assert maker.settled() == [6, 7, 8]


def test_steps_in_any_order_are_right_and_nothing_is_made_for_them() -> None:
    maker = Maker()
    assert [maker.ahead(step, 9) for step in (5, 2, 7, 2)] == [50, 20, 70, 20]
    assert maker.settled() == []


def test_large_steps_are_made_when_they_are_due() -> None:
    for size, ahead in (
        (making.BYTES_AHEAD + 1, []),
        (making.BYTES_AHEAD, [1, 2, 3]),
        (making.BYTES_AHEAD // 2, [1, 2, 3, 4]),
    ):
        maker = Maker(size=size)
        for step in range(3):
            maker.ahead(step, 9)
        assert maker.settled() == ahead, size


def test_an_error_is_raised_at_the_step_that_needs_what_is_gone() -> None:
    maker = Maker(bad=3)
    assert [maker.ahead(step, 9) for step in range(3)] == [0, 10, 20]
    with pytest.raises(RunError, match="gone"):
        maker.ahead(3, 9)
    maker.ahead.close()


def test_closing_waits_for_the_threads_and_drops_their_errors() -> None:
    slow = threading.Event()

    def make(step: int) -> int:
        if step:
            slow.wait(30)
            raise RunError("nobody asks", "")
        return step

    made = Ahead(make, lambda _: 1)
    made(0, 9)
    threading.Timer(0.05, slow.set).start()
    made.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


# --- of a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "six", [SQUARE] * 4 + [WIDE] * 3)


def begun(data: Path, steps: int = 5) -> Bench:
    return bench("pocket", data, train__steps=steps, train__batch=2, data__flip=True, data__caption_dropout=0.5)


def test_training_is_the_same_to_the_bit_with_and_without(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = begun(data)
    with_it.train()
    with_it.batches.close()
    monkeypatch.setattr(making, "STEPS_AHEAD", 0)
    without = begun(data)
    without.train()
    assert all(torch.equal(tensor, without.weights()[name]) for name, tensor in with_it.weights().items())


@pytest.mark.parametrize("way", ["it ends", "it is left", "it fails"])
def test_no_thread_is_left_however_a_run_ends(way: str, data: Path) -> None:
    """A thread ends by itself when its step is made."""
    run = begun(data)
    steps = run.steps()
    next(steps), next(steps)
    if way == "it ends":
        list(steps)
    elif way == "it is left":
        steps.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    for thread in [t for t in threading.enumerate() if t.name.startswith("ahead")]:
        thread.join()  # each makes one step and ends: one that did not would hang here
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


# --- copies to a GPU --------------------------------------------------------------------------------------------------


class FakeCuda:
    """Notes what is asked of it, in order."""

    def __init__(self) -> None:
        self.done = list[str]()
        self.here = SimpleNamespace(wait_stream=lambda stream: self.done.append(f"wait for {stream}"))

    def Stream(self, device: torch.device) -> str:
        return "side"

    def stream(self, stream: str) -> "FakeCuda":
        self.done.append(f"on {stream}")
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.done.append("off")

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return self.here


class FakeTensor:
    def __init__(self, done: list[str]) -> None:
        self.done = done

    def pin_memory(self) -> "FakeTensor":
        self.done.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "FakeTensor":
        self.done.append(f"to {device} {'and on' if non_blocking else 'and waited'}")
        return self

    def record_stream(self, stream: object) -> None:
        self.done.append("kept")


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    yield FakeCuda()


def test_a_gpu_is_copied_to_from_pinned_memory_beside_its_computation(cuda: FakeCuda) -> None:
    copies = Copies(torch.device("cuda"), cuda)
    with copies.aside():
        made = copies(FakeTensor(cuda.done))  # type: ignore[arg-type]
    copies.arrived([made])
    assert cuda.done == ["on side", "pinned", "to cuda and on", "off", "wait for side", "kept"]


def test_on_a_cpu_nothing_is_copied(cuda: FakeCuda) -> None:
    copies, tensor = Copies(torch.device("cpu"), cuda), torch.ones(2)
    with copies.aside():
        same: Tensor = copies(tensor)
    copies.arrived([same])
    assert same is tensor and not cuda.done


# --- what a step costs ------------------------------------------------------------------------------------------------


def calls_of_a_step(made: Bench, pictures_in_all: int) -> int:
    """Of Python functions, for the batches of a step, the orders of its epoch known."""
    placed = made.plan.train.placed[0]
    named = [placed._replace(example=placed.example._replace(name=str(n))) for n in range(pictures_in_all)]
    schedule = dataclasses.replace(made.plan.train.schedule, buckets=(tuple(range(pictures_in_all)),))
    micros = schedule.micros_per_epoch
    plan = dataclasses.replace(made.plan, train=Pool(tuple(named), schedule), micros=micros)
    latents = {(str(n), crop): next(iter(made.latents.values())) for n in range(pictures_in_all) for crop in CROPS}
    batches = Batches(plan, made.family, latents, made.captions)
    batches._share(0, ALONE, False)
    counted = cProfile.Profile()
    counted.runcall(batches._share, 1, ALONE, False)
    return sum(row.callcount for row in counted.getstats())


def test_a_step_does_nothing_for_pictures_that_it_does_not_show(data: Path) -> None:
    """Twenty times the pictures, as many calls."""
    made = begun(data)
    few, many = (calls_of_a_step(made, n) for n in (50, 1001))
    assert 100 < few and many <= 1.02 * few, (few, many)
