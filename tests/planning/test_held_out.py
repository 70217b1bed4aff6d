"""Pictures that the dataset itself holds out, and those that validation.count draws beside them."""

from pathlib import Path

import pytest
from support.nasty_folder import encoded, picture

from finetune import recipe
from finetune.cli import plan_view
from finetune.errors import DataError, RecipeError
from finetune.planning import plan


@pytest.fixture
def split(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for i in range(6):
        folder = root / ("train" if i < 4 else "validation")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))
    return root


def planned(root: Path, *sets: str) -> plan.Plan:
    own = [f"data.path={root}", "data.trigger=sks", "data.class_word=mug"]
    return plan.resolve_plan(recipe.load(Path("pocket-product"), [*own, *sets]))


def names(found: plan.Plan) -> list[str]:
    return [p.example.name for p in found.held_out]


DECLARED = ["validation/4.jpg", "validation/5.jpg"]


def test_what_the_dataset_holds_out_is_never_trained_on_without_a_word_in_the_recipe(split: Path) -> None:
    found = planned(split)
    assert names(found) == DECLARED and len(found.train.placed) == 4
    assert any("pictures, those in validation" in n for n in found.notices)
    assert plan_view._split(found) == " (the dataset's own)"


@pytest.mark.parametrize("count", [1, 2])
def test_a_smaller_count_draws_none_beside_them(count: int, split: Path) -> None:
    assert names(planned(split, f"validation.count={count}")) == DECLARED


def test_a_larger_count_draws_the_rest_by_chance(split: Path) -> None:
    found = planned(split, "validation.count=4")
    assert len(found.held_out) == 4 and set(DECLARED) < set(names(found)) and len(found.train.placed) == 2
    assert plan_view._split(found) == " (the dataset's own, and 2 by chance to reach validation.count)"
    assert names(found) == names(planned(split, "validation.count=4"))
    with pytest.raises(DataError, match="leaves nothing to train on"):
        planned(split, "validation.count=6")


def test_how_often_the_loss_is_measured_may_be_set_where_something_is_held_out(split: Path) -> None:
    assert planned(split, "validation.every=5").recipe.validation.every == 5
    with pytest.raises(RecipeError, match=r"validation.every: has no effect with validation.count = 0"):
        planned(split / "train", "validation.every=5")
    kept = recipe.dumps(planned(split, "validation.every=5").recipe)
    assert "every = 5" in kept


def test_a_dataset_that_holds_out_everything_is_refused(split: Path) -> None:
    rows = (f"{'train' if i < 4 else 'validation'}/{i}.jpg,val\n" for i in range(6))
    (split / "metadata.csv").write_text("file_name,split\n" + "".join(rows))
    with pytest.raises(DataError, match="holds out all of its 6 images"):
        planned(split)
