"""A plan shows the prompts as pictures are made of them, and says what they lack, before anything is trained."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import cli, recipe
from finetune.cli import plan_view
from finetune.data.prepare import prepare
from finetune.errors import RecipeError
from finetune.planning import plan as planning
from finetune.planning.plan import Plan
from finetune.recipe import ClassImages


@pytest.fixture
def photos(tmp_path) -> Path:
    return album(tmp_path / "photos", "picture {} of a mug")


def album(folder: Path, caption: str = "") -> Path:
    folder.mkdir()
    for i in range(5):
        noise = np.random.default_rng((i, len(folder.name))).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        if caption:
            (folder / f"{i}.txt").write_text(caption.format(i))
    return folder


def planned(folder: Path, *sets: str) -> Plan:
    path = folder.parent / "recipe.toml"
    path.write_text(f'base = "pocket"\n[data]\npath = "{folder}"\n')
    return planning.resolve_plan(recipe.load(path, sets))


WORDS = ("data.trigger=sks", "data.class_word=umbrella")


def test_the_words_of_the_dataset_stand_in_every_prompt_of_the_recipe(photos, tmp_path):
    others = album(tmp_path / "class images")
    plan = planned(
        photos, *WORDS, 'sample.prompts=["a {trigger} {class_word}", "a {class_word}"]',
        "sample.negative=a {class_word}", "prior.mode=images", f"prior.path={others}",
        "prior.prompt=a picture of a {class_word}", 'evaluate.prompts=["a {trigger} {class_word}", "a {class_word}"]',
    )  # fmt: skip
    assert plan.recipe.sample.prompts == ("a sks umbrella", "an umbrella")
    assert plan.recipe.sample.negative == "an umbrella"
    assert plan.recipe.evaluate.prompts == ("a sks umbrella", "an umbrella")
    assert isinstance(plan.recipe.prior, ClassImages) and plan.recipe.prior.prompt == "a picture of an umbrella"
    assert plan.prior is not None and {p.example.caption for p in plan.prior.placed} == {"a picture of an umbrella"}
    assert plan_view.answers(plan, [], None)["prompts"] == "a sks umbrella\nan umbrella"
    path = tmp_path / "again.toml"
    path.write_text(recipe.dumps(plan.recipe))
    assert planning.resolve_plan(recipe.load(path)).recipe == plan.recipe


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sample.prompts", '["a mug", "a {trigger}"]', "prompts, item 2, \"a {trigger}\": the dataset has no trigger"),
        ("sample.prompts", '["a photo of a {class_word}"]', "the dataset has no class word"),
        ("sample.negative", "a {class_word}", "sample.negative, "),
        ("evaluate.prompts", '["a {class_word}"]', "evaluate.prompts, item 1, "),
    ],
)  # fmt: skip
def test_a_placeholder_without_its_word_says_how_to_declare_it(photos, tmp_path, key, value, words):
    with pytest.raises(RecipeError) as caught:
        planned(photos, f"{key}={value}")
    assert words in caught.value.problem and caught.value.hint.startswith("declare it: data.")
    prepare(photos, tmp_path / "made")
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path / "made", f"{key}={value}")
    assert words in caught.value.problem
    assert caught.value.action is not None and caught.value.action.name == "prepare"
    assert {"trigger", "class_word"} & caught.value.action.arguments.keys()


def test_a_prior_prompt_that_becomes_the_trigger_is_refused(photos, tmp_path):
    others = album(tmp_path / "class images")
    with pytest.raises(RecipeError, match="holds the trigger"):
        planned(photos, *WORDS, "prior.mode=images", f"prior.path={others}", "prior.prompt=a {trigger}")


# --- prompts that nobody wrote ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["product", "style"])
def test_a_dataset_of_a_kind_has_the_prompts_of_its_goal(photos, tmp_path, kind):
    prepare(photos, tmp_path / "made", trigger="sks", class_word="umbrella", kind=kind)
    plan = planned(tmp_path / "made")
    prompts, captions = plan.recipe.sample.prompts, {e.caption for e in plan.data.examples}
    assert len(prompts) == 4 and not captions & {*prompts} and not any("{" in prompt for prompt in prompts)
    assert {"sks" in prompt for prompt in prompts} == {True, False}
    assert not plan.notices


def test_without_the_words_or_the_kind_the_first_captions_stand_in_but_none_that_is_not_read(tmp_path):
    folder = tmp_path / "dataset"
    prepare(album(tmp_path / "photos", "mug {} on a table"), folder)
    table = folder / "metadata.jsonl"
    table.write_text(table.read_text().replace("mug 0 on", "(red:1.4) mug on").replace("mug 1 on", "{strange} mug on"))
    assert planned(folder).recipe.sample.prompts == ("mug 2 on a table", "mug 3 on a table", "mug 4 on a table")
    table.write_text(re.sub(r"mug \d+ on", "{strange} mug on", table.read_text()))
    with pytest.raises(RecipeError, match="no caption can stand in"):
        planned(folder)
    prepare(album(tmp_path / "bare", "sks {}"), tmp_path / "made", trigger="sks", kind="product")
    assert planned(tmp_path / "made").recipe.sample.prompts[0] == "sks 0", "a goal's prompts need a class word"


# --- what is worth knowing -------------------------------------------------------------------------------------------


def test_prompts_that_all_lack_the_trigger_are_said_once(photos):
    plan = planned(photos, *WORDS, 'sample.prompts=["a mug", "a cup"]')
    assert len(plan.notices) == 1 and "has the trigger 'sks'" in plan.notices[0]
    assert not planned(photos, *WORDS, 'sample.prompts=["a mug", "a {trigger} mug"]').notices
    assert not planned(photos, 'sample.prompts=["a mug"]').notices, "there is no trigger to miss"


def test_a_prompt_longer_than_the_base_reads_is_said_with_what_is_lost(photos):
    long = " ".join(["a red mug"] * 10)
    plan = planned(photos, f'sample.prompts=["a mug on a wooden table in the blue snow", "{long} and the end"]',
                   f"sample.negative={long} at last")  # fmt: skip
    first, second = plan.notices
    assert first.startswith("sample.prompts, item 2: ") and "the base reads 32" in first and "and the end'" in first
    assert second.startswith("sample.negative: ") and second.endswith("at last'")


def test_the_command_prints_prompts_and_notices_in_80_columns_and_as_json(photos, capsys, monkeypatch):
    monkeypatch.setattr(cli, "hush", lambda: None)
    monkeypatch.setenv("COLUMNS", "80")
    path = photos.parent / "mine.toml"
    path.write_text(f'base = "pocket"\n[data]\npath = "{photos}"\ntrigger = "sks"\nclass_word = "mug"\n'
                    '[sample]\nprompts = ["a photo of a {class_word}", "a {class_word}"]\n')  # fmt: skip
    for more in ((), ("--json",)):
        monkeypatch.setattr(sys, "argv", ["finetune", "plan", str(path), *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        shown = capsys.readouterr()
        assert not left.value.code and "note: none of sample.prompts has the trigger 'sks'" in shown.err
        if more:
            assert "has the trigger 'sks'" in json.loads(shown.out)["notices"][0]
        else:
            assert "prompts  a photo of a mug\n         a mug\n" in "\n".join(map(str.rstrip, shown.out.splitlines()))
            assert max(map(len, shown.out.splitlines())) <= 80


def strange(plan: Plan) -> list[str]:
    return [notice for notice in plan.notices if "captions say" in notice]


def test_a_prompt_that_says_the_trigger_as_no_caption_does_is_named(tmp_path):
    photos = album(tmp_path / "mugs", "a sks mug, view {}")
    words = ("data.trigger=sks", "data.class_word=mug")
    assert not strange(planned(photos, *words, 'sample.prompts=["a sks mug on a beach", "a cup", "SKS mug"]'))
    [told] = strange(planned(photos, *words, 'sample.prompts=["a sks mug", "a sks cup on a beach"]'))
    assert told.startswith("the prompt \"a sks cup on a beach\" says 'sks cup', and captions say 'sks mug'")


def test_what_the_template_says_by_turns_is_said(tmp_path):
    plain = album(tmp_path / "plain")
    words = ("data.trigger=sks", "data.class_word=mug")
    assert not strange(planned(plain, *words, 'sample.prompts=["a photo of sks mug on a beach"]'))
    assert strange(planned(plain, *words, 'sample.prompts=["a mug, sks style"]'))
