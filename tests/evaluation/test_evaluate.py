"""A verdict from end to end on the pocket base: at the end of a run, by command and by call, kept and gone on with."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from support.bases import tiny_base
from support.runs import short
from transformers import Dinov2Config, Dinov2Model
from typer.testing import CliRunner

import finetune
from finetune import recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.cli import app
from finetune.errors import InputError, NotLearnt, RecipeError, TrainError
from finetune.evaluation import gallery, subject
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.prompts import pictures_for
from finetune.evaluation.similarity import FeatureExtractor
from finetune.evaluation.subject import of_path
from finetune.events import Evaluated, Event, Note, Stage, unheard
from finetune.planning import plan as planning
from finetune.planning.plan import Plan
from finetune.reporting.owner import Ownership
from finetune.training import learnt, run
from finetune.training.stop import follow

pytestmark = pytest.mark.usefixtures("whole_judgement")
COUNT = 4
PRODUCT = Path("example:product")


class Failed(NamedTuple):
    out: Path
    events: list[Event]
    error: TrainError


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Failed:
    """A run of two steps, which learnt nothing."""
    out, events = tmp_path_factory.mktemp("verdict") / "run", list[Event]()
    loaded = short(PRODUCT, data__resolution=64, train__steps=2, validation__count=2, evaluate__count=COUNT)
    with pytest.raises(NotLearnt) as raised:
        follow(run.run(loaded, out), events.append)
    return Failed(out, events, raised.value)


@pytest.fixture
def copy(failed: Failed, tmp_path: Path) -> Path:
    """The same run once more, to be changed."""
    return Path(shutil.copytree(failed.out, tmp_path / "run"))


def painted(out: Path) -> set[str]:
    return {path.name for path in (out / "evaluation").glob("*.png") if not path.name.startswith("sheet")}


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def todo(events: list[Event]) -> list[int]:
    """How many pictures were to be generated."""
    return [e.total for e in events if isinstance(e, Stage) and e.name == "evaluating"]


# --- at the end of a run ---------------------------------------------------------------------------------------------


def test_a_run_that_learnt_nothing_ends_with_exit_code_4_and_keeps_its_file(failed: Failed) -> None:
    file = failed.out / "adapter" / "mug.safetensors"
    assert failed.error.exit_code == 4 and "not learnt: the product is seen in 0 of 4 prompts" in failed.error.problem
    assert str(file) in failed.error.problem and finetune.verify(file).ok
    assert "each picture was shown 0 times" in failed.error.hint
    assert json.loads((failed.out / "run.json").read_text())["outcome"] == "not learnt"


def test_the_verdict_is_an_event_of_the_run_and_of_its_log(failed: Failed) -> None:
    verdict = failed.events[-1]
    assert isinstance(verdict, Evaluated) and not verdict.learnt and verdict.seen == "0/4"
    last = json.loads((failed.out / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["learnt"], last["seen"]) == ("evaluated", False, "0/4")
    of_pictures = {"likeness", "drift", "diversity", "memorisation", "prompt"}
    assert last["scores"].keys() == of_pictures | {f"held_out_{level}" for level in (0.1, 0.3, 0.5, 0.7, 0.9)}
    assert 0.5 < last["scores"]["held_out_0.5"]["value"] != 1, "two steps changed little, but something"
    assert last["scores"]["likeness"].keys() == {"value", "low", "high"}
    assert last["reasons"] == list(verdict.reasons)
    assert verdict.sheet is not None and opened(verdict.sheet).width > 1000
    assert todo(failed.events) == [pictures_for(COUNT)] == [len(painted(failed.out))]


def test_a_count_of_0_turns_it_off_and_says_so(failed: Failed, tmp_path: Path) -> None:
    plan = planning.resolve_plan(short(PRODUCT, evaluate__count=0))
    [event] = learnt.judged(plan, failed.out / "adapter" / "mug.safetensors", tmp_path, None)
    assert isinstance(event, Note) and "evaluate.count = 0" in event.text and not list(tmp_path.iterdir())


def test_a_base_of_photos_has_no_verdict_until_a_judge_is_named(tmp_path: Path) -> None:
    """The pocket eyes have seen icons only: they must not judge photos in silence."""
    base = tiny_base(tmp_path / "base", "sd15")
    plan = planning.resolve_plan(short(PRODUCT, str(base), data__resolution=64, evaluate__count=COUNT))
    [event] = learnt.judged(plan, tmp_path / "a.safetensors", tmp_path / "run", None)
    assert isinstance(event, Note) and "not judged" in event.text and "evaluate.judge" in event.text
    named = learnt.subject_of(plan, tmp_path / "a.safetensors", tmp_path, shipped.EYES, None)
    assert named.judge == shipped.EYES and named.count == COUNT


def test_scores_on_the_way_without_a_judge_are_refused_before_the_run(tmp_path: Path) -> None:
    """Candidates that nobody scores could not be picked, nor stop a run."""
    base = tiny_base(tmp_path / "base", "sd15")
    asked = short(PRODUCT, str(base), data__resolution=64, evaluate__count=COUNT, evaluate__every=2)
    with pytest.raises(RecipeError, match=r"evaluate\.every: pictures of .* need a judge") as refused:
        planning.resolve_plan(asked)
    assert "evaluate.judge" in refused.value.hint
    named = recipe.replace(asked.recipe, evaluate__judge=shipped.EYES)
    assert planning.resolve_plan(asked._replace(recipe=named)).recipe.evaluate.every == 2


def test_a_judge_that_is_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.judge: no model in"):
        planning.resolve_plan(short(PRODUCT, evaluate__judge=tmp_path))


def planned(**changes: object) -> Plan:
    return planning.resolve_plan(short(PRODUCT, data__resolution=64, evaluate__count=None, **changes))


def test_by_default_pictures_take_a_tenth_of_the_run_and_no_fewer_than_4_nor_more_than_10() -> None:
    short_run, longer, long = (learnt.affordable(planned(train__steps=n)) for n in (2, 1500, 10_000))
    assert (short_run, long) == (4, 10) and 4 < longer < 10
    with_prior = learnt.affordable(planned(train__steps=1500, prior={"mode": "own_prediction"}))
    assert longer < with_prior, "its steps take longer, so that more pictures fit"
    passes = pictures_for(longer) * 10 * 2
    assert passes <= 0.1 * 1500 * 3 < pictures_for(longer + 1) * 10 * 2


# --- by command and by call ------------------------------------------------------------------------------------------


def test_the_call_gives_the_same_verdict_and_paints_nothing_again(failed: Failed, monkeypatch) -> None:
    monkeypatch.setattr(gallery, "Session", None)
    verdict = finetune.evaluate(failed.out)
    told = failed.events[-1]
    assert isinstance(told, Evaluated)
    assert verdict == told


def test_without_a_count_it_is_told_from_as_many_pictures_as_the_run_told_it(copy: Path) -> None:
    """The run may have afforded fewer than the usual ten."""
    text = (copy / "recipe.toml").read_text()
    (copy / "recipe.toml").write_text(text.replace(f"count = {COUNT}\n", ""))
    assert of_path(copy).count == COUNT and of_path(copy, count=COUNT + 1).count == COUNT + 1
    (copy / "events.jsonl").unlink()
    assert of_path(copy).count == subject.COUNT


def test_an_evaluation_that_was_killed_goes_on_where_it_was(copy: Path) -> None:
    names = sorted(painted(copy))
    (copy / "evaluation" / names[0]).unlink()
    whole = (copy / "evaluation" / names[1]).read_bytes()
    (copy / "evaluation" / names[1]).write_bytes(whole[: len(whole) // 2])
    events = list(evaluate(of_path(copy)))
    assert todo(events) == [2] and sorted(painted(copy)) == names


def test_another_adapter_shares_the_bases_pictures_but_not_its_own(copy: Path) -> None:
    file = copy / "adapter" / "mug.safetensors"
    tensors = {name: tensor * 2 for name, tensor in weights.load_tensors(file).items()}
    before = painted(copy)
    weights.write_tensors(tensors, file, weights.read_header(file).metadata)
    assert todo(list(evaluate(of_path(copy)))) == [pictures_for(COUNT) // 2]
    assert len(painted(copy)) == len(before) * 3 // 2


def test_more_pictures_are_added_to_those_that_are_there(copy: Path) -> None:
    [more] = todo(list(evaluate(of_path(copy, count=COUNT + 1))))
    assert more == 2  # one more, from both


def test_a_verdict_that_is_asked_for_later_goes_into_the_runs_log_and_page(copy: Path) -> None:
    (copy / "report.html").unlink(missing_ok=True)
    told = finetune.evaluate(copy)
    last = json.loads((copy / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "evaluated" and last["text"] == told.text
    assert told.text.split(";")[0].casefold() in (copy / "report.html").read_text().casefold()
    recipe_file = copy / "recipe.toml"
    recipe_file.write_text(recipe_file.read_text().replace(f"count = {COUNT}\n", ""))
    assert finetune.evaluate(copy, count=COUNT + 1).seen.endswith(f"/{COUNT + 1}")
    assert of_path(copy).count == COUNT, "as many as the run itself asked for, whatever was asked since"
    before = (copy / "events.jsonl").read_bytes()
    owner = Ownership(copy)
    owner.take()  # a run that goes on tells its own
    finetune.evaluate(copy)
    owner.release()
    finetune.evaluate(subject.exported(copy), base="pocket", data=PRODUCT)
    assert (copy / "events.jsonl").read_bytes() == before


def test_the_command_answers_in_json_with_the_names_that_scripts_rely_on(failed: Failed) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(failed.out), "--json"])
    said = json.loads(done.stdout)
    assert said["learnt"] is False and said["seen"] == "0/4" and said["reasons"]
    assert said["scores"]["likeness"].keys() == {"value", "low", "high"}
    assert isinstance(done.exception, TrainError) and done.exception.exit_code == 4


def test_the_command_shows_each_score_with_its_interval_and_the_likeliest_cause(failed: Failed) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(failed.out)])
    for word in (
        "likeness",
        "drift",
        "memorisation",
        " to ",
        "perhaps: each picture was shown 0 times",
        "sheet-mug.png",
    ):
        assert word in done.output, done.output
    assert not CliRunner().invoke(app, ["evaluate", str(failed.out), "--quiet"]).output


def test_a_file_alone_needs_the_training_pictures_and_is_then_judged_beside_itself(failed: Failed, tmp_path) -> None:
    file = Path(shutil.copyfile(failed.out / "adapter" / "mug.safetensors", tmp_path / "mine.safetensors"))
    with pytest.raises(InputError, match="what was it trained on") as raised:
        finetune.evaluate(file)
    assert "`data`" in raised.value.hint
    subject = of_path(file, data=PRODUCT, count=COUNT)
    assert subject.folder == tmp_path / "mine-evaluation" and subject.training.visits == pytest.approx(2 / 6)
    # the pictures of the run are those of the file, which is the same wherever it lies
    shutil.copytree(failed.out / "evaluation", subject.folder)
    events = list(evaluate(subject))
    assert todo(events) == [] and isinstance(events[-1], Evaluated) and events[-1].seen == "0/4"


def test_a_file_in_a_run_is_judged_as_the_run_is(failed: Failed) -> None:
    of_file, of_run = of_path(failed.out / "adapter" / "mug.safetensors"), of_path(failed.out)
    assert of_file == of_run and of_run.training.effect is not None


def test_a_step_of_a_run_is_judged_with_the_bases_pictures_of_the_run(copy: Path) -> None:
    subject = of_path(Path(f"{copy}@2"))
    assert subject.path.parent.name == "checkpoints" and subject.training.visits == pytest.approx(2 / 6)
    assert subject.training.effect is None, "that is of the run's end"
    events = list(evaluate(subject))
    assert todo(events) == [pictures_for(COUNT) // 2] and isinstance(events[-1], Evaluated)
    assert events[-1].seen == "0/4" and events[-1].sheet == copy / "evaluation" / "sheet-step-000002.png"


def test_a_judge_without_words_leaves_prompts_unjudged(failed: Failed, tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(tmp_path)
    said = json.loads((shipped.EYES / "preprocessor_config.json").read_text())
    size = {"size": {"height": 28, "width": 28}, "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**said, **size}))
    verdict = unheard(evaluate(of_path(failed.out, judge=tmp_path)))
    assert "prompt" not in verdict.scores and "likeness" in verdict.scores and "asked for" not in verdict.text


def test_a_whole_pipeline_is_judged_as_an_adapter_is(copy: Path) -> None:
    """The base itself in its place: every picture is the base's, and nothing was learnt."""
    verdict = unheard(evaluate(dataclasses.replace(of_path(copy), path=shipped.POCKET)))
    assert [verdict.scores[name].value for name in ("likeness", "drift")] == pytest.approx([0, 0], abs=1e-6)
    assert not verdict.learnt and "no nearer to its pictures than the base's are (0.00)" in verdict.text


# --- a style ---------------------------------------------------------------------------------------------------------


def test_the_measure_of_style_tells_styles_apart_whatever_the_pictures_show() -> None:
    """Each half of the example's icons, of other objects, is nearer to the other half than any recoloured icon is."""
    eyes = FeatureExtractor.load(shipped.EYES)
    icons = [opened(p) for p in sorted((shipped.EXAMPLES / "style" / "images").glob("*.png"))]
    one, other = icons[::2], icons[1::2]
    others = [Image.merge("RGB", picture.split()[::-1]) for picture in other]
    real, styled, foreign = (eyes.style_of_pictures(some).double() for some in (one, other, others))
    centre = real.mean(0)
    assert (styled @ centre).min() > (foreign @ centre).max() + 0.1
