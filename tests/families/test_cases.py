"""The table of cases leaves no family, variant, published structure or recipe out."""

from typing import get_args

import pytest
from families.cases import CASES, CONFIGS, OF_RECIPE, USUAL, Case
from support.bases import Variant

from finetune import families
from finetune import resources as shipped


def test_every_family_of_ours_has_cases_and_one_that_stands_for_it() -> None:
    assert {case.family for case in CASES} == families.FAMILIES.keys()
    assert sorted(case.family for case in USUAL) == sorted(families.FAMILIES)


def test_every_small_base_and_every_published_structure_is_somebodys() -> None:
    assert {case.variant for case in CASES} == set(get_args(Variant))
    kept = {published.configs for case in CASES for published in case.published}
    assert {folder for folder in CONFIGS.iterdir() if folder.is_dir()} <= kept


def test_every_recipe_trains_a_case() -> None:
    words = {file.stem.partition("-")[0] for file in shipped.RECIPES.glob("*.toml")}
    assert OF_RECIPE.keys() == words


@pytest.mark.parametrize("case", USUAL, ids=[case.family for case in USUAL])
def test_what_stands_for_a_family_has_all_that_is_asked_of_it(case: Case) -> None:
    assert case.published and case.recipes and all(one.configs.is_dir() for one in case.published)
    assert case.transformer == (case.large_encoder is not None), "a transformer reads a language model or T5"
