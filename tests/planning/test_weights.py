"""A picture of weight 5 is shown five times as often as one of weight 1, by a schedule that stays a pure function."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from support.sources import captioned_folder

from finetune import recipe
from finetune.cli import plan_view
from finetune.data.prepare import prepare
from finetune.errors import DataError
from finetune.planning import weights
from finetune.planning.plan import resolve_plan
from finetune.planning.schedule import Schedule, by_bucket
from finetune.planning.weights import WeightShare, repeats_of, shares

MIXED = [
    ((1, 1, 5), (3,)), ((2, 3, 1, 1), (2, 2)), ((1, 4), (1, 1)), ((7, 2, 2, 9, 1), (5,)),
    ((3, 1, 1, 2, 5, 1), (1, 2, 3))
]  # fmt: skip
"""(repeats, sizes of buckets)"""


def schedule(repeats: Sequence[int], sizes: Sequence[int], batch: int, world: int = 1) -> Schedule:
    numbers = [bucket for bucket, n in enumerate(sizes) for _ in range(n)]
    random.Random(1).shuffle(numbers)
    return Schedule(by_bucket(numbers), batch, 1, 3, world, tuple(repeats))


def table() -> list[Schedule]:
    return [schedule(*one, batch, world) for one, batch, world in itertools.product(MIXED, (1, 2, 3, 4, 7), (1, 2))]


def epoch_of(plan: Schedule, epoch: int) -> list[tuple[int, int]]:
    """(sample, visit) of all that an epoch shows."""
    n = plan.micros_per_epoch
    return [tuple(view) for m in range(epoch * n, (epoch + 1) * n) for view in plan.micro_batch(m).views]


def test_an_epoch_shows_each_picture_as_often_as_its_weight_says() -> None:
    for repeats, sizes in MIXED:
        plan = schedule(repeats, sizes, 1)
        for epoch in range(3):
            assert Counter(sample for sample, _ in epoch_of(plan, epoch)) == dict(enumerate(repeats))
        assert plan.images_per_epoch == sum(repeats) == plan.micros_per_epoch and plan.images == len(repeats)


def test_what_completes_a_batch_is_shared_by_weight_as_well() -> None:
    for plan in table():
        epochs = 30
        seen = plan.visits(epochs * plan.micros_per_epoch)
        for samples, slots in zip(plan.buckets, plan.slots, strict=True):
            each = epochs * plan.batch * -(-len(slots) // plan.batch) / len(slots)
            assert all(abs(seen[s] - each * plan.repeats[s]) <= plan.repeats[s] for s in samples)
            assert all(seen[s] >= epochs * plan.repeats[s] for s in samples)


def test_each_repeat_is_a_visit_of_its_own_numbered_0_1_2() -> None:
    for plan in table():
        numbers: dict[int, list[int]] = {s: [] for s in range(plan.images)}
        for epoch in range(4):
            for sample, visit in epoch_of(plan, epoch):
                numbers[sample].append(visit)
            for found in numbers.values():
                assert sorted(found) == list(range(len(found))), plan


def test_visits_of_weighted_pictures_are_what_counting_gives_at_any_length() -> None:
    for plan in table():
        counted: Counter[int] = Counter()
        for m in range(2 * plan.micros_per_epoch + 2):
            assert plan.visits(m) == counted
            counted.update(view.sample for view in plan.micro_batch(m).views)


def test_a_micro_batch_is_the_same_whatever_was_asked_before() -> None:
    for plan in table():
        last = 5 * plan.micros_per_epoch - 1
        fresh = Schedule(plan.buckets, plan.batch, 1, plan.seed, plan.world_size, plan.repeats)
        assert [plan.micro_batch(m) for m in range(last + 1)][last] == fresh.micro_batch(last)


def test_repeats_of_one_are_as_none_to_the_bit() -> None:
    for batch in (1, 2, 3):
        plain, ones = schedule((), (3, 5), batch), schedule((1,) * 8, (3, 5), batch)
        assert [plain.micro_batch(m) for m in range(40)] == [ones.micro_batch(m) for m in range(40)]


@pytest.mark.parametrize(
    "given, counts",
    [
        ([1, 1, 1], ()), ([1, 5], (1, 5)), ([2, 0.5], (4, 1)), ([1, 1.5, 3], (2, 3, 6)), ([10, 30, 10], (1, 3, 1)),
        ([0.1, 1], (1, 10)), ([1000, 1], (1000, 1)), ([], ()), ([0.7, 1], (7, 10)),
    ],
)  # fmt: skip
def test_the_smallest_whole_numbers_have_just_the_ratios(given, counts):
    assert repeats_of(given) == (counts, ())


def test_a_weight_that_is_nearly_a_simple_fraction_is_said_to_be_taken_for_it():
    counts, notices = repeats_of([0.3333, 1])
    assert counts == (1, 3) and notices == ("weights are rounded to a simple ratio: 0.3333 as 1/3",)


def test_weights_that_are_all_the_same_have_no_effect_and_that_is_said():
    counts, (notice,) = repeats_of([10, 10])
    assert counts == () and "every picture has the weight 10" in notice


@pytest.mark.parametrize("given", [[1, 1.2345], [0.123, 0.456, 1], [1e-9, 1]])
def test_weights_in_no_simple_ratio_are_refused_with_their_numbers(given):
    with pytest.raises(DataError) as refused:
        repeats_of(given)
    assert f"{sorted(given)[0]:g}" in refused.value.problem and "simple ratio" in refused.value.hint


def test_an_epoch_of_millions_of_repeats_is_refused(monkeypatch):
    monkeypatch.setattr(weights, "MOST_SHOWN", 2000)
    assert len(repeats_of([1, 999, 1000]).counts) == 3
    with pytest.raises(DataError, match="an epoch would show 2,001 pictures"):
        repeats_of([1, 1000, 1000])


def test_pictures_are_counted_by_weight():
    assert shares([1, 2, 2, 0.5], (2, 4, 4, 1)) == [WeightShare(2, 2, 4), WeightShare(1, 1, 2), WeightShare(0.5, 1, 1)]
    assert shares([1, 1], ()) == []


def test_a_plan_says_how_often_an_epoch_shows_which_pictures(tmp_path):
    for name, seeds in (("few", [1, 2]), ("many", [3, 4, 5])):
        captioned_folder(tmp_path / name, seeds)
    prepare([f"{tmp_path}/few:5", str(tmp_path / "many")], tmp_path / "data", trigger="sks", class_word="mug")
    said = recipe.Recipe(base="pocket", data={"path": tmp_path / "data"}, train={"batch": 1, "epochs": 2})
    plan = resolve_plan(recipe.Loaded(said, {}, tmp_path))
    assert plan.train.schedule.images_per_epoch == 13 and plan.samples == 26
    told = plan_view.answers(plan, [], None)["length"]
    assert "2 images of weight 5: 5 times, 3 images of weight 1: once" in told and "seen 2 to 10 times" in told
    (row,) = plan.buckets()
    assert (row.images, row.batches, row.surplus) == (5, 13, 1.0)
    found = plan_view.as_json(plan, [], None)
    assert found["weights"][0] == {"weight": 5.0, "images": 2, "repeats": 5}
    assert found["identity"]["images_per_epoch"] == 13
