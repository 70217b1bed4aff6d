"""The pocket base and its judge know flat drawings: of photographs this is said before training, and no verdict is
given that nobody can give."""

from pathlib import Path

import pytest
from support.photos import photograph
from support.runs import short

from finetune.data.dataset import read_dataset
from finetune.errors import InputError, RecipeError
from finetune.evaluation import subject
from finetune.events import Event, Finished, Note
from finetune.pages.outcome import outcome_of
from finetune.planning import plan as planning
from finetune.reporting.history import read_history
from finetune.training import run
from finetune.training.stop import follow


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(3):
        photograph(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a sks lamp on ground {number}")
    return folder


def notices(data: Path, base: str = "pocket", **changes: object) -> list[str]:
    return [n for n in planning.resolve_plan(short(data, base, **changes)).notices if "are photographs" in n]


def test_the_plan_says_that_the_pocket_base_cannot_draw_photographs(photographs: Path) -> None:
    (said,) = notices(photographs)
    assert "name a base for photos" in said and "flat colours" in said
    assert not notices(Path("example:product"))


def test_scores_on_the_way_are_refused_where_nobody_can_give_them(photographs: Path, tmp_path: Path) -> None:
    scored = {"evaluate__count": 4, "evaluate__every": 2}
    with pytest.raises(RecipeError, match=r"evaluate\.every: the images are photographs"):
        notices(photographs, **scored)
    (tmp_path / "config.json").write_text("{}")
    assert notices(photographs, **scored, evaluate__judge=tmp_path), "somebody else may score them"
    assert not notices(Path("example:product"), **scored)


def test_they_are_judged_by_whoever_is_named_and_on_other_bases_nothing_is_said(photographs: Path) -> None:
    data = read_dataset(photographs)
    assert subject.judge_for("pocket", None, data) is None
    assert subject.judge_for("pocket", photographs, data) == photographs
    other = short(photographs).recipe.model_copy(update={"base": "org/sdxl"})
    assert planning.beyond_pocket(short(photographs).recipe, data) and not planning.beyond_pocket(other, data)


def test_a_run_ends_with_its_file_and_says_why_nobody_judges_it(photographs: Path, tmp_path: Path) -> None:
    events = list[Event]()
    last = follow(run.run(short(photographs, evaluate__count=4), tmp_path / "run"), events.append)
    assert isinstance(last, Finished) and last.path.is_file()
    (said,) = [one.text for one in events if isinstance(one, Note) and subject.UNJUDGED in one.text]
    assert "training images are photographs" in said and "evaluate.judge" in said
    page = outcome_of(read_history(tmp_path / "run"))
    assert page.state == "not judged" and "photographs" in page.text
    assert any(one.action and one.action.arguments["judge"] for one in page.todo), "a judge must be named"
    with pytest.raises(InputError, match="knows flat drawings only"):
        subject.of_path(tmp_path / "run")
