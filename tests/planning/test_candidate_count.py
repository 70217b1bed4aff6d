"""How many candidates a run of any length writes, counted without walking through its steps."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune import recipe
from finetune.planning.candidates import candidate_count, is_candidate
from finetune.recipe import Recipe


def plan(steps: int, sampled: int, scored: int) -> Any:
    wanted = Recipe.model_validate({"base": "pocket", "data": {"path": Path("photos"), "trigger": "sks"}})
    return SimpleNamespace(steps=steps, recipe=recipe.replace(wanted, sample__every=sampled, evaluate__every=scored))


@pytest.mark.parametrize("sampled, scored", list(product((0, 1, 4, 6), (0, 1, 4, 9))))
def test_the_count_is_that_of_a_walk_through_all_steps(sampled: int, scored: int) -> None:
    for steps in (1, 7, 12, 36, 37):
        one = plan(steps, sampled, scored)
        assert candidate_count(one) == sum(is_candidate(one, step) for step in range(1, steps + 1)), steps


def test_a_run_without_an_end_in_sight_is_counted_at_once() -> None:
    assert candidate_count(plan(10**18, 10**6, 10**5)) == 10**13
