"""Which candidate is shipped, and when a run stops by itself."""

import pytest

from finetune.evaluation.choose import Limits, best, reason_to_stop
from finetune.events import Score, Scored

LIMITS = Limits(max_drift=0.3, min_prompt=0.5, max_memorisation=0.5)


def scored(step, likeness, drift=0.1, prompt=1.0, memorisation=0.0, half=0.1):
    values = {"likeness": likeness, "drift": drift, "prompt": prompt, "memorisation": memorisation}
    return Scored(step, "9/10", {name: Score(value, value - half, value + half) for name, value in values.items()})


def test_the_most_alike_inside_the_limits_is_shipped():
    some = [scored(100, 0.7), scored(200, 0.9), scored(300, 0.95, drift=0.31), scored(400, 0.8)]
    assert best(some, LIMITS).step == 200


@pytest.mark.parametrize("broken", [{"drift": 0.4}, {"prompt": 0.4}, {"memorisation": 0.6}])
def test_each_limit_holds(broken):
    over = scored(200, 0.9, **broken)
    assert best([scored(100, 0.7), over], LIMITS).step == 100 and len(LIMITS.broken(over)) == 1


def test_the_earliest_of_equals_and_the_least_bad_of_bad_ones():
    assert best([scored(200, 0.9), scored(100, 0.9)], LIMITS).step == 100
    worse = scored(100, 0.9, drift=0.4, prompt=0.1)
    assert best([worse, scored(200, 0.5, drift=0.4)], LIMITS).step == 200


def test_a_score_that_was_not_measured_breaks_no_limit():
    unread = Scored(100, "9/10", {"likeness": Score(0.9, 0.8, 1.0), "drift": Score(0.1, 0, 0.2)})
    assert LIMITS.broken(unread) == []


def test_a_run_stops_when_likeness_stands_and_drift_rises():
    some = [scored(100, 0.6), scored(200, 0.9), scored(300, 0.92, drift=0.15), scored(400, 0.9, drift=0.2)]
    assert reason_to_stop(some[:3], 2) == ""
    assert reason_to_stop(some, 2) == "likeness has not risen since step 200 (0.90), while drift rises"


def test_it_goes_on_while_likeness_rises_beyond_chance_or_nothing_is_lost():
    rising = [scored(100, 0.6), scored(200, 0.75, drift=0.2), scored(300, 0.9, drift=0.3)]
    assert reason_to_stop(rising, 2) == ""
    harmless = [scored(100, 0.9), scored(200, 0.9), scored(300, 0.9)]
    assert reason_to_stop(harmless, 2) == ""
    assert "memorisation" in reason_to_stop([*harmless[:2], scored(300, 0.9, memorisation=0.2)], 2)


def test_patience_is_counted_in_evaluations():
    some = [scored(100 * n, 0.9, drift=0.1 * n) for n in range(1, 5)]
    assert [bool(reason_to_stop(some, patience)) for patience in (1, 2, 3, 4)] == [True, True, True, False]
