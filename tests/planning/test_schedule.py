"""Which samples form a step: nothing is dropped, counted = planned, whatever the numbers."""

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from finetune.diffusion.chance import permutation
from finetune.planning import schedule as planned
from finetune.planning.schedule import Micro, Schedule, by_bucket

BUCKETS = [(1,), (2,), (5,), (6,), (7, 3), (1, 1), (4, 1, 9), (2, 3, 5, 7), (16,)]
AWKWARD = [*itertools.product(BUCKETS, (1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 4))]


def schedule(sizes: tuple[int, ...], batch: int, accumulate: int, world: int, seed: int = 0) -> Schedule:
    numbers = [bucket for bucket, n in enumerate(sizes) for _ in range(n)]
    random.Random(0).shuffle(numbers)  # samples of a bucket need not lie together
    return Schedule(by_bucket(numbers), batch, accumulate, seed, world)


def table() -> Iterator[Schedule]:
    return (schedule(sizes, batch, accumulate, world) for sizes, batch, accumulate, world in AWKWARD)


def run(plan: Schedule, epochs: int) -> list[list[list[Micro]]]:
    """[step][rank] -> micro-batches."""
    total = epochs * plan.micros_per_epoch
    steps = range(plan.steps_for(epochs))
    return [[plan.step(k, rank, total) for rank in range(plan.world_size)] for k in steps]


def views(micros: list[Micro]) -> Counter[int]:
    return Counter(v.sample for m in micros for v in m.views)


def test_every_image_is_seen_at_least_once_an_epoch() -> None:
    for plan in table():
        for epoch in range(3):
            n = plan.micros_per_epoch
            seen = views([plan.micro_batch(m) for m in range(epoch * n, (epoch + 1) * n)])
            assert set(seen) == set(range(plan.images)), plan


def test_surplus_views_are_shared_evenly() -> None:
    """Inside a bucket no image is ever two visits ahead of another."""
    for plan in table():
        for epochs in (1, 2, 5):
            seen = plan.visits(epochs * plan.micros_per_epoch)
            for samples in plan.buckets:
                counts = [seen[s] for s in samples]
                assert max(counts) - min(counts) <= 1, (plan, epochs)
                assert sum(counts) == epochs * plan.batch * -(-len(samples) // plan.batch)


def test_visits_is_what_counting_gives_at_any_length() -> None:
    for plan in table():
        counted: Counter[int] = Counter()
        for m in range(2 * plan.micros_per_epoch + 2):
            assert plan.visits(m) == counted, (plan, m)
            counted.update(v.sample for v in plan.micro_batch(m).views)


def test_the_visits_of_a_sample_are_numbered_0_1_2() -> None:
    """Each number once, and in order but for places inside one epoch."""
    for plan in table():
        numbers: dict[int, list[int]] = {s: [] for s in range(plan.images)}
        for epoch in range(4):
            for m in range(epoch * plan.micros_per_epoch, (epoch + 1) * plan.micros_per_epoch):
                for view in plan.micro_batch(m).views:
                    numbers[view.sample].append(view.visit)
            for found in numbers.values():
                assert sorted(found) == list(range(len(found))), plan


def test_a_micro_batch_is_full_and_of_one_bucket() -> None:
    for plan in table():
        for m in range(plan.micros_per_epoch):
            micro = plan.micro_batch(m)
            assert len(micro.views) == plan.batch
            assert {v.sample for v in micro.views} <= set(plan.buckets[micro.bucket])


def test_planned_is_counted() -> None:
    """images x visits = samples = steps x global batch, less the short last group."""
    for plan, epochs in itertools.product(table(), (1, 3)):
        steps = run(plan, epochs)
        micros = [m for step in steps for rank in step for m in rank]
        assert len(micros) == epochs * plan.micros_per_epoch
        assert views(micros) == plan.visits(len(micros))
        assert views(micros).total() == len(micros) * plan.batch
        assert len(steps) == -(-len(micros) // (plan.accumulate * plan.world_size))
        assert sum(len(r) for r in steps[-1]) == len(micros) - (len(steps) - 1) * plan.micro_batches_per_step > 0


def test_ranks_have_equally_many_batches_except_in_a_short_last_group() -> None:
    for plan in table():
        *whole, last = run(plan, 2)
        assert all([len(rank) for rank in step] == [plan.accumulate] * plan.world_size for step in whole)
        counts = [len(rank) for rank in last]
        assert max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("sizes", BUCKETS)
def test_a_step_has_the_same_batches_however_they_are_spread(sizes: tuple[int, ...]) -> None:
    """Four ranks, two ranks that accumulate, and one: the same samples at the same visits, step by step."""
    spread = [schedule(sizes, 2, 4 // world, world) for world in (1, 2, 4)]
    for k in range(9):
        one, two, four = (sorted(m for rank in range(s.world_size) for m in s.step(k, rank)) for s in spread)
        assert one == two == four


def test_a_step_is_a_function_of_its_number() -> None:
    """Asked in any order, of any object, whatever was asked before."""
    for sizes in BUCKETS:
        plan = schedule(sizes, 3, 2, 1)
        straight = [plan.step(k) for k in range(40)]
        order = list(range(40))
        random.Random(1).shuffle(order)
        jumping = {k: plan.step(k) for k in order}
        assert straight == [jumping[k] for k in range(40)]
        assert [schedule(sizes, 3, 2, 1).step(k) for k in (39, 7)] == [straight[39], straight[7]]


def test_epochs_differ_in_order_and_so_do_seeds() -> None:
    plan = schedule((16,), 4, 1, 1)
    epochs = [[[v.sample for v in plan.micro_batch(m).views] for m in range(e * 4, e * 4 + 4)] for e in range(4)]
    assert all(a != b for a, b in itertools.combinations(epochs, 2))
    company = [{frozenset(batch) for batch in epoch} for epoch in epochs]
    assert all(a != b for a, b in itertools.combinations(company, 2))
    other = schedule((16,), 4, 1, 1, seed=1)
    assert [plan.micro_batch(m) for m in range(4)] != [other.micro_batch(m) for m in range(4)]


def test_buckets_are_mixed_within_an_epoch() -> None:
    plan = schedule((8, 8), 1, 1, 1)
    kinds = [plan.micro_batch(m).bucket for m in range(plan.micros_per_epoch)]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


def test_a_run_of_thousands_of_steps_keeps_its_memory_small() -> None:
    plan = schedule((5, 3), 2, 1, 1)
    for k in range(3000):
        plan.step(k)
    assert len(plan._orders) < 50


def test_samples_are_grouped_by_bucket_in_order() -> None:
    assert by_bucket([2, 0, 2, 5]) == ((1,), (0, 2), (3,))


def test_the_order_is_the_one_that_runs_have_had() -> None:
    """Three epochs of every awkward schedule: a resumed run must go on in the same order."""
    digest = hashlib.sha256()
    for plan in table():
        for m in range(3 * plan.micros_per_epoch):
            micro = plan.micro_batch(m)
            digest.update(repr((micro.bucket, [tuple(visit) for visit in micro.views])).encode())
    assert digest.hexdigest()[:16] == "30ae21f248d0740a"


def test_no_list_of_samples_is_searched_for_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,001 pictures in one bucket that took 14 ms a micro-batch."""

    class Order(list[int]):
        def index(self, *_: object) -> int:
            raise AssertionError("searched")

        def __contains__(self, _: object) -> bool:
            raise AssertionError("searched")

    plain = [schedule((7, 3), 4, 1, 1).micro_batch(m) for m in range(12)]
    monkeypatch.setattr(planned, "permutation", lambda *a: Order(permutation(*a)))
    assert [schedule((7, 3), 4, 1, 1).micro_batch(m) for m in range(12)] == plain
