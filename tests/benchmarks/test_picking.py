"""`benchmarks/pick.py`: what it makes of scores, and that its bars can be missed."""

import pick
import pytest
from learns import Measures, Trial
from pick import Looked

from finetune.events import Score, Scored

TRIAL = Trial("lamp", "too long", (), 0)


def looked(step, likeness, drift, worth):
    scores = {"likeness": Score(likeness, likeness - 0.1, likeness + 0.1), "drift": Score(drift, drift, drift)}
    return Looked(Scored(step, "9/10", scores), worth)


RUN = [looked(100, 0.5, 0.01, 0.7), looked(200, 0.9, 0.02, 0.97), looked(300, 0.9, 0.05, 0.95),
       looked(400, 0.92, 0.3, 0.9), looked(500, 0.95, 0.4, 0.6)]  # fmt: skip


def test_the_outcome_is_what_the_rules_say_of_the_scores():
    found = pick.outcome(TRIAL, RUN)
    assert (found.shipped.scored.step, found.stopped, found.steps) == (200, 400, 500)
    assert (found.shipped.worth, found.best, found.last) == (0.97, 0.97, 0.6)
    assert "shipped step 200 of 500" in pick.line(found)


@pytest.mark.parametrize("missed, changed", [(0, {"best": 1.1}), (1, {"last": 0.99}), (2, {"stopped": 334})])
def test_each_bar_can_be_missed(missed, changed):
    good = pick.outcome(TRIAL, RUN)._replace(stopped=300)
    assert [hits for _, hits, _ in pick.bars([good] * 12)] == [12, 12, 12]
    assert pick.bars([good._replace(**changed)])[missed][1] == 0


def test_worth_is_of_what_is_seen_asked_and_kept():
    assert pick.worth(Measures(fidelity=1.2, prompt=0.5, kept=0.9)) == pytest.approx(0.8)
