"""What the user wrote: read exactly, or refused with every problem named; and no setting that does nothing."""

import json
import random
import re
import string
from pathlib import Path

import pytest
import tomlkit
from pydantic import ValidationError
from support.recipes import SOUND, refused, written

from finetune import recipe
from finetune import resources as shipped
from finetune.errors import RecipeError
from finetune.recipe import Recipe, tables
from finetune.recipe.load import RENAMED, RENAMED_VALUES
from finetune.recipe.resolved import ResolvedData


def test_set_wins_over_the_file_and_the_last_set_over_the_others(tmp_path):
    path = written(tmp_path, SOUND + "[train]\nsteps = 5\nbatch = 2\n[adapter.ranks]\nto_k = 2")
    loaded = recipe.load(path, ["train.steps=7", "train.steps=9", "data.trigger=sks", "adapter.ranks.to_q=4"])
    assert loaded.recipe.train.steps == 9 and loaded.recipe.train.batch == 2
    assert loaded.recipe.data.trigger == "sks" and loaded.recipe.adapter.ranks == {"to_k": 2, "to_q": 4}
    assert loaded.sources == {
        "base": "file", "data.path": "file", "train.batch": "file",
        "train.steps": "override", "data.trigger": "override",
        "adapter.ranks": "override",
    }  # fmt: skip


def test_set_reads_values_as_toml_and_bare_words_as_text(tmp_path):
    sets = [
        "optimizer.learning_rate=3e-4", "data.flip=true", 'sample.prompts=["a, b", "c=d"]', "data.path=C:\\mug = 2",
        'data.trigger="ohwx man"', "data.class_word = dog ", "sample.negative=a = b", 'adapter.targets=["to_q"]',
    ]  # fmt: skip
    found = recipe.load(written(tmp_path, SOUND), sets).recipe
    assert found.optimizer.learning_rate == 3e-4 and found.data.flip is True
    assert found.sample.prompts == ("a, b", "c=d") and found.data.path == Path("C:\\mug = 2")
    assert (found.data.trigger, found.data.class_word) == ("ohwx man", "dog")
    assert found.sample.negative == "a = b" and found.adapter.targets == ("to_q",)


def test_a_set_of_a_whole_table_replaces_it(tmp_path):
    path = written(tmp_path, SOUND + "[train]\nsteps = 5\nbatch = 2")
    loaded = recipe.load(path, ["train={seed = 3}"])
    assert loaded.recipe.train == recipe.Train(seed=3)
    assert {k: v for k, v in loaded.sources.items() if k.startswith("train")} == {"train.seed": "override"}


def test_steps_and_epochs_the_set_decides_against_the_file_but_two_sets_contradict(tmp_path):
    path = written(tmp_path, SOUND + "[train]\nsteps = 5")
    loaded = recipe.load(path, ["train.epochs=2"])
    assert (loaded.recipe.train.steps, loaded.recipe.train.epochs) == (None, 2)
    assert "train.steps" not in loaded.sources and loaded.sources["train.epochs"] == "override"
    assert "decide the same thing" in refused(path, "train.epochs=2", "train.steps=3").problem
    assert "is a table" in refused(written(tmp_path, "train = 3\n" + SOUND), "train.epochs=2").problem


@pytest.mark.parametrize("name", [p.stem for p in sorted(shipped.RECIPES.glob("*.toml"))])
def test_a_shipped_recipe_survives_being_written_and_read(name, tmp_path):
    found = recipe.load(Path(name)).recipe
    assert recipe.load(written(tmp_path, recipe.dumps(found))).recipe == found


def test_a_random_recipe_survives_being_written_and_read(tmp_path):
    chance, texts = random.Random(0), []
    for _ in range(60):
        wanted = Recipe.model_validate(_random_tables(chance))
        texts.append(recipe.dumps(wanted))
        assert recipe.load(written(tmp_path, texts[-1])).recipe == wanted, texts[-1]
    assert len(set(texts)) == 60
    assert 'method = "full"' in "".join(texts) and 'mode = "images"' in "".join(texts)


def test_thousands_of_prompts_are_written_without_an_array_that_grows_by_each(monkeypatch, tmp_path):
    prompts = [f'a "sks" {n}\\' for n in range(3000)]
    found = recipe.load(written(tmp_path, SOUND + f"[sample]\nprompts = {json.dumps(prompts)}\n")).recipe
    monkeypatch.setattr(tomlkit.items.Array, "append", lambda *_: pytest.fail("tomlkit counts all anew"))
    assert recipe.load(written(tmp_path, recipe.dumps(found))).recipe == found and len(found.sample.prompts) == 3000


def _random_tables(chance: random.Random) -> dict[str, dict[str, object] | str]:
    letters = string.printable + "äß中🐕\u200b"

    def text() -> str:
        return "".join(chance.choice(letters) for _ in range(chance.randint(1, 12)))

    def prompt() -> str:
        return re.sub(r"[][{}()<>|\\:;_#-]", "", text()) + chance.choice(["", "{trigger}", " {class_word}"])

    number = 10 ** chance.uniform(-12, 3)
    method, mode = chance.choice(["lora", "full"]), chance.choice(["off", "images", "own_prediction"])
    tables: dict[str, dict[str, object] | str] = {
        "base": text(),
        "data": {"path": Path(text().replace("\0", "")), "trigger": text(), "flip": chance.random() < 0.5},
        "adapter": {"method": method, "components": ("denoiser", "text_encoder")[: chance.randint(1, 2)]},
        "optimizer": {"learning_rate": number, "epsilon": number / 1e4, "warmup_steps": chance.randrange(10**7)},
        "train": {chance.choice(["steps", "epochs"]): chance.randint(1, 9), "seed": chance.randrange(2**63)},
        "sample": {"prompts": tuple(prompt() for _ in range(chance.randint(0, 3))), "negative": prompt()},
        "export": {"title": text(), "license": text()},
    }
    if method == "lora":
        ranks = {text(): chance.randint(1, 9) for _ in range(chance.randint(0, 2))}
        tables["adapter"] |= {"rank": chance.randint(1, 9), "targets": (text(), text()), "ranks": ranks}
        tables["export"]["layouts"] = ("diffusers", "merged")
        tables["prior"] = {"mode": mode} | ({"path": Path("class")} if mode == "images" else {})
    return tables


def test_what_has_no_effect_is_not_written(tmp_path):
    found = recipe.load(written(tmp_path, SOUND), ["adapter.method=full"]).recipe
    text = recipe.dumps(found)
    assert not any(f"\n{word} " in text for word in ("rank", "targets", "layouts", "weight", "text_encoder_targets"))


def test_recipes_are_frozen():
    found = recipe.load(Path("pocket-product")).recipe
    with pytest.raises(ValueError, match="frozen"):
        found.train.steps = 5
    assert recipe.replace(found, train__steps=5, base="b").train.steps == 5 and found.train.steps == 300


def test_keys_walk_the_whole_schema():
    found = list(recipe.keys())
    schema = Recipe.model_json_schema()
    told = []
    for name, entry in schema["properties"].items():
        tables = [schema["$defs"][ref] for ref in re.findall(r"#/\$defs/(\w+)", json.dumps(entry))]
        told += [f"{name}.{inner}" for table in tables for inner in table.get("properties", ())] or [name]
    told = list(dict.fromkeys(told))
    assert found == told and len(found) == len(set(found)) > 45
    values = recipe.load(Path("pocket-product")).recipe
    assert [recipe.value(values, key) for key in found][1] == "pocket"


# --- what was written, and what a run resolved -----------------------------------------------------------------------


def test_nothing_is_replaced_without_being_checked():
    base = recipe.load(Path("pocket-product")).recipe
    with pytest.raises(RecipeError) as caught:
        recipe.replace(base, train__stepz=3, optimizer__learning_rate="fast", prior__path="x", trian__steps=3)
    assert caught.value.problem.splitlines()[1:] == [
        '  prior.path: no such key with prior.mode = "own_prediction"; it belongs to prior.mode = "images"',
        '  optimizer.learning_rate: needs a number, got "fast"',
        "  train.stepz: no such key; did you mean train.steps?",
        "  trian: no such key; did you mean train?",
    ]
    changed = recipe.replace(base, train__steps=3, optimizer__name="adamw8bit", base="x", validation__count=1)
    assert (changed.train.steps, changed.optimizer.name, changed.base, changed.validation.count) == (
        3, "adamw8bit", "x", 1,
    )  # fmt: skip
    assert type(changed.optimizer) is recipe.AdamW8bit and changed.optimizer.learning_rate == 1e-3
    assert {k for k in recipe.keys() if recipe.value(changed, k) != recipe.value(base, k)} == {
        "base", "optimizer.name", "train.steps", "validation.count"
    }  # fmt: skip


def test_a_table_made_from_another_is_checked_too():
    assert recipe.LoRA.of(recipe.LoRA(rank=3), dropout=0.5) == recipe.LoRA(rank=3, dropout=0.5)
    for wrong in ({"dropuot": 0.5}, {"dropout": "half"}, {"dropout": 1.5}):
        with pytest.raises(ValidationError):
            recipe.LoRA.of(recipe.LoRA(rank=3), **wrong)
    with pytest.raises(ValidationError, match="resolution"):
        ResolvedData.of(recipe.Data(path=Path("x")))


def test_what_follows_from_another_key_follows_it_when_that_is_replaced():
    base = recipe.load(Path("pocket-product")).recipe
    assert recipe.replace(base, adapter__rank=3).adapter.alpha == 3.0
    assert recipe.replace(base, adapter__rank=3, adapter__alpha=5.0).adapter.alpha == 5.0
    assert recipe.replace(recipe.replace(base, adapter__alpha=5.0), adapter__rank=3).adapter.alpha == 5.0


@pytest.mark.parametrize("left_open", ["data.resolution", "objective.prediction", "train.steps", "train.precision",
                                       "sample.guidance"])  # fmt: skip
def test_a_resolved_recipe_leaves_nothing_open_that_a_run_needs(left_open):
    """The same keys as the user's recipe, of narrower types."""
    assert set(recipe.keys(recipe.ResolvedRecipe)) == set(recipe.keys())
    wanted = recipe.replace(recipe.load(Path("pocket-product")).recipe, train__epochs=2, train__steps=None)
    whole = {"data__resolution": 64, "objective__prediction": "epsilon", "train__precision": "fp32",
             "train__steps": 9, "sample__guidance": 3.0}  # fmt: skip
    made = recipe.ResolvedRecipe.model_validate(tables.written(recipe.replace(wanted, **whole)))
    assert type(recipe.replace(made, train__seed=4)) is recipe.ResolvedRecipe
    gap = {left_open.replace(".", "__"): "auto" if left_open in ("objective.prediction", "train.precision") else None}
    with pytest.raises(RecipeError, match=rf"{left_open}: "):
        recipe.replace(made, **gap)
    recipe.replace(wanted, **gap)


def test_a_recipe_for_others_holds_no_path_of_this_machine(tmp_path):
    paths = {"data": {"path": tmp_path / "data", "cache": tmp_path / "cache"}, "base": str(tmp_path / "base")}
    made = recipe.ResolvedRecipe.model_validate({
        **paths, "adapter": {"init_from": tmp_path / "start.safetensors"}, "train": {"steps": 9, "precision": "fp32"},
        "prior": {"mode": "images", "path": tmp_path / "mugs"}, "objective": {"prediction": "v"},
        "sample": {"guidance": 3.0}, "data": paths["data"] | {"resolution": 64},
    })  # fmt: skip
    public = recipe.dumps(recipe.without_paths(made, "mug", "base"))
    assert str(tmp_path) not in public
    for line in (
        'base = "base"',
        'path = "mug"',
        'path = "mugs"',
        'init_from = "start.safetensors"',
        'mode = "images"',
    ):
        assert line in public
    assert str(tmp_path / "start.safetensors") in recipe.dumps(made)


# --- names that have changed -----------------------------------------------------------------------------------------

OLD = {"objective.density": '"uniform"', "objective.logit_deviation": "0.5", "prior.mode": '"self"'}


def test_an_old_name_is_read_with_a_notice_wherever_it_is_written(tmp_path):
    heads = {key.partition(".")[0]: f"[{key.partition('.')[0]}]" for key in OLD}
    text = "\n".join(
        line for name, head in heads.items()
        for line in (head, *(f"{k.partition('.')[2]} = {v}" for k, v in OLD.items() if k.startswith(f"{name}.")))
    )  # fmt: skip
    today = text.replace("density", "timestep_density").replace("deviation", "std").replace("self", "own_prediction")
    new = recipe.load(written(tmp_path, SOUND + today))
    assert not new.notices
    old = recipe.load(written(tmp_path, SOUND + text))
    set_ = recipe.load(written(tmp_path, SOUND), [f"{key}={value}" for key, value in OLD.items()])
    whole = recipe.load(
        written(tmp_path, SOUND), ["objective={density='uniform', logit_deviation=0.5}", "prior.mode=self"]
    )
    assert old.recipe == set_.recipe == whole.recipe == new.recipe
    assert old.sources == new.sources and set_.sources["objective.logit_std"] == "override"
    for loaded in (old, whole):
        assert len(loaded.notices) == 3 and 'prior.mode = "self" is now "own_prediction"' in loaded.notices[-1]
        assert loaded.notices[0].startswith("objective.density is now called objective.timestep_density;")
    assert recipe.replace(new.recipe, prior__mode="self", prior__weight=0.5).prior.weight == 0.5


def test_an_old_name_beside_the_new_one_is_refused(tmp_path):
    error = refused(written(tmp_path, SOUND + '[objective]\ndensity = "uniform"\ntimestep_density = "uniform"'))
    assert "objective.density: no such key; did you mean objective.timestep_density?" in error.problem


def test_every_old_name_leads_to_a_key_that_there_is():
    assert set(RENAMED.values()) | {key for key, _ in RENAMED_VALUES} <= set(recipe.keys())
    assert not set(RENAMED) & set(recipe.keys())


def test_every_key_is_documented_in_whole_sentences(monkeypatch):
    monkeypatch.syspath_prepend(str(shipped.RECIPES.parent / "docs"))
    import make_recipes

    told = dict(re.findall(r"^\| `([\w.]+)` \| [^|]* \| (?:(?:`\w+`, )*`\w+`: )?(.*) \|$", make_recipes.page(), re.M))
    assert list(told) == list(recipe.keys())
    for key, note in told.items():
        assert note[0].isupper() and note.endswith((".", '."')) and len(note.split()) > 6, f"{key}: {note}"
