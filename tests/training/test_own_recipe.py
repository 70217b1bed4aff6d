"""A resume goes on by the run's own recipe; what a call changes is said or refused; refused runs block nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.runs import begin, outcome, refused, short, train
from typer.testing import CliRunner

from finetune import api, recipe
from finetune import resources as shipped
from finetune.cli import app
from finetune.errors import Interrupted, MemoryShortage, RunError
from finetune.events import Stepped, Warned
from finetune.planning import leftovers
from finetune.planning import plan as planning
from finetune.planning.leftovers import BundledExample
from finetune.training import loop as trainer
from finetune.training import run
from finetune.training.resume import own_recipe, record

pytestmark = pytest.mark.whole
FIRST = ["train.steps=4", 'sample.prompts=["a {trigger} cup, tall"]', "train.seed=7"]
"""overrides of the first call"""


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mug.toml, and beside it a run that was begun with it and FIRST, and saved step 2."""
    root = tmp_path_factory.mktemp("begun")
    (root / "mug.toml").write_text(recipe.dumps(short(data, train__steps=9).recipe))
    begin(recipe.load(root / "mug.toml", FIRST), root / "run", 2)
    return root


@pytest.fixture
def root(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "copy"))


def warned(root: Path, given: Path | None = None, overrides: tuple[str, ...] = ()) -> list[str]:
    """What a resume says of changes; the run goes on to step 4, and no further."""
    seen = begin(own_recipe(root / "run", given, overrides), root / "run", 4, resume=True)
    return [event.text for event in seen if isinstance(event, Warned)]


def test_a_resume_without_the_first_calls_overrides_goes_on_by_them(root: Path) -> None:
    assert warned(root, root / "mug.toml") == []
    own = recipe.load(root / "run" / "recipe.toml").recipe
    assert (own.train.steps, own.train.seed, own.sample.prompts) == (4, 7, ("a sks cup, tall",))


def test_a_resume_without_a_recipe_and_one_with_the_same_overrides_again_say_nothing(root: Path) -> None:
    assert warned(root, root / "mug.toml", tuple(FIRST)) == []
    assert own_recipe(root / "run").recipe == own_recipe(root / "run", root / "run" / "recipe.toml").recipe
    assert record(root / "run")["file"]["train.steps"] == 9  # as mug.toml says it


def test_what_was_edited_since_changes_the_run_and_is_said(root: Path) -> None:
    text = (root / "mug.toml").read_text()
    (root / "mug.toml").write_text(text.replace("steps = 9", "steps = 6"))
    assert warned(root, root / "mug.toml") == ["changed by this call: train.steps: was 4, now 6"]
    assert own_recipe(root / "run", root / "mug.toml").sources.get("train.steps") == "file"  # the run's own by now
    assert record(root / "run")["steps"] == 6


def test_an_override_changes_the_run_is_said_and_stays(root: Path) -> None:
    said = warned(root, None, ("sample.prompts=['a sks cup']", "train.steps=5"))
    assert sorted(said) == ["changed by this call: sample.prompts: was ['a sks cup, tall'], now ['a sks cup']",
                            "changed by this call: train.steps: was 4, now 5"]  # fmt: skip
    assert own_recipe(root / "run", root / "mug.toml").recipe.train.steps == 5


def test_what_may_not_change_is_refused_with_the_list_before_anything_is_opened(root: Path) -> None:
    edited = (root / "mug.toml").read_text().replace("rank = 2", "rank = 4")
    (root / "mug.toml").write_text(edited)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "beginning", lambda *_: pytest.fail("the base was opened"))
        with pytest.raises(RunError) as error:
            train(own_recipe(root / "run", root / "mug.toml", ("train.batch=2",)), root / "run", resume=True)
    assert "adapter.rank: was 2, now 4" in error.value.problem and "train.batch: was 1, now 2" in error.value.problem
    assert error.value.action is not None and error.value.action.arguments["resume"] is True


def test_what_does_not_fit_the_runs_data_is_told_as_a_change(root: Path) -> None:
    loaded = own_recipe(root / "run", None, ("data.path=example:product", "data.trigger=zzz"))
    with pytest.raises(RunError, match=r"with what this call changes \(data.path, data.trigger\)") as error:
        train(loaded, root / "run", resume=True)
    assert error.value.action is not None


def test_a_longer_run_says_what_its_schedule_does(data: Path, tmp_path: Path) -> None:
    falling = {"optimizer__schedule": "cosine", "optimizer__warmup_steps": 0}
    begin(short(data, train__steps=4, **falling), tmp_path / "out", 2)
    seen = begin(short(data, train__steps=8, **falling), tmp_path / "out", 4, resume=True)
    [said] = [e.text for e in seen if isinstance(e, Warned) and "learning rate" in e.text]
    assert "from step 3 on" in said and "85% of its peak instead of 50%" in said


def test_a_run_of_an_earlier_version_goes_on_by_its_own_recipe(root: Path) -> None:
    told = record(root / "run")
    del told["file"], told["settings"]
    (root / "run" / "run.json").write_text(json.dumps(told))
    loaded = own_recipe(root / "run", root / "mug.toml")
    assert loaded.recipe.train.steps == 4 and "by its own recipe" in loaded.notices[-1]


def test_by_the_command_and_from_python_a_resume_needs_no_recipe(root: Path) -> None:
    steps = [e.step for e in api.train(None, root / "run", resume=True) if isinstance(e, Stepped)]
    assert steps == [3, 4] and outcome(root / "run") == "done"
    done = CliRunner().invoke(app, ["train", "--resume", "--out", str(root / "run"), "--quiet"])
    assert done.exit_code == 0, done.output
    for arguments, said in ((["--out", "x"], "needs a recipe"), (["--out", "x", "--resume"], "holds no run to resume")):
        assert said in str(CliRunner().invoke(app, ["train", *arguments]).exception)
    with pytest.raises(RunError, match="needs a recipe"):
        list(api.train(None, root / "none"))


# --- refused runs ----------------------------------------------------------------------------------------------------


def test_a_run_refused_at_pre_flight_leaves_its_log_and_blocks_nothing(data: Path, tmp_path: Path) -> None:
    out, loaded = tmp_path / "out", short(data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "accumulate", lambda *_: torch.empty(1 << 50))
        refused(loaded, out, MemoryShortage)
        assert [path.name for path in out.iterdir()] == ["events.jsonl"]
        assert "holds no run" in refused(loaded, out, RunError, resume=True).problem
    begin(short(data, adapter__rank=1), out, 2)


def test_a_run_that_ended_before_it_saved_a_step_blocks_nothing(data: Path, tmp_path: Path) -> None:
    """Its memory ran out in the first step after the pre-flight, or while step 0 was sampled."""
    out = tmp_path / "out"

    def short_of_memory(*_: object) -> torch.Tensor:
        return torch.empty(1 << 50)

    for place, name in ((run.pictures, "draw_samples"), (trainer, "train")):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(place, name, short_of_memory)
            with pytest.raises(MemoryShortage):
                train(short(data, sample__every=1), out)
        assert outcome(out).startswith("failed out of memory") and not (out / "checkpoints").exists()
    begin(short(data, adapter__rank=1), out, 2)
    assert not (out / "samples").exists()  # of the run before


def test_a_run_that_may_be_going_on_or_has_saved_a_step_is_not_taken_over(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for told in ("running", "done"):
        (out / "run.json").write_text(json.dumps({"outcome": told}))
        assert "holds a run already" in refused(short(data), out, RunError).problem
    (out / "run.json").write_text(json.dumps({"outcome": "failed"}))
    (out / "candidates" / "step-000002").mkdir(parents=True)
    (out / "candidates" / "step-000002" / "a.safetensors").write_text("")
    assert "holds a run already" in refused(short(data), out, RunError).problem
    shutil.rmtree(out / "candidates")
    (out / "notes.txt").write_text("mine")
    assert "holds a run already" in refused(short(data), out, RunError).problem
    (out / "run.json").unlink()
    (out / "recipe.toml").write_text("mine")
    assert "is not empty" in refused(short(data), out, RunError).problem


def test_a_file_that_would_name_this_machine_leaves_that_out_and_says_so_first(data: Path, tmp_path: Path) -> None:
    seen = begin(short(data, export__title="/home/me/mug"), tmp_path / "out", 2)
    told = [e.text for e in seen if isinstance(e, Warned)]
    assert [said for said in told if said.startswith("export.title: a path (/home/me/mug) will be left out")]
    assert "/home/me" in (tmp_path / "out" / "recipe.toml").read_text(), "the run's own recipe is as it was written"


# --- what is left of an example ---------------------------------------------------------------------------------------


def test_a_plan_names_what_is_still_the_examples(data: Path) -> None:
    prompts = ("a {trigger} cup on a purple background", "a tea cup on a red background")
    copied = planning.resolve_plan(short(data, export__license="CC0-1.0", sample__prompts=prompts))
    example = BundledExample("cup", "CC0-1.0", ("a {trigger} cup on a purple background", "a star"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(leftovers, "_examples", lambda: [example])
        said = leftovers.leftovers(copied)
        assert len(said) == 2 and "'a sks cup on a purple background'" in said[0] and "CC0-1.0" in said[1]
        assert leftovers.leftovers(planning.resolve_plan(short(data, sample__prompts=("a star",)))) == []
        cups = planning.resolve_plan(short(data, sample__prompts=prompts, data__class_word="cup"))
        assert leftovers.leftovers(cups) == []


def test_the_bundled_examples_are_found_and_their_recipes_carry_no_licence() -> None:
    found = leftovers._examples()
    assert {"cup", ""} == {one.class_word for one in found} and {"CC0-1.0"} == {one.license for one in found}
    assert all(one.prompts for one in found)
    for file in shipped.RECIPES.glob("*.toml"):
        assert "export.license" not in recipe.written_in(file), file.name
    own = planning.resolve_plan(recipe.load(Path("pocket-product")))
    assert own.recipe.export.license == "" and "the bundled pictures" in leftovers.leftovers(own)[0]


def test_stopping_in_full_fine_tuning_offers_no_adapter(data: Path, tmp_path: Path) -> None:
    full = recipe.FullWeights(components=("text_encoder",))
    events = run.run(short(data, adapter=full, optimizer__learning_rate=1e-4), tmp_path / "out")
    with pytest.raises(Interrupted) as stopped:
        for event in events:
            if isinstance(event, Stepped):
                events.throw(KeyboardInterrupt())
                next(events)
    assert stopped.value.other is None
