"""What the user wrote: read exactly, or refused with every problem named; and no setting that does nothing."""

import json
import random
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import ValidationError
from support.command import answered, calls

from finetune import recipe
from finetune import resources as shipped
from finetune.errors import RecipeError
from finetune.recipe import Recipe, tables
from finetune.recipe.load import RENAMED, RENAMED_VALUES
from finetune.recipe.resolved import ResolvedData

SOUND = 'base = "pocket"\n[data]\npath = "mug"\n'
COMMAND = [sys.executable, "-m", "finetune"]


class Nasty(NamedTuple):
    """A recipe, and what must be said of it: exactly these problems, each holding all of its words."""

    text: str | bytes
    says: list[tuple[str, ...]]


NASTY = {
    "empty": Nasty("", [("base: missing", "pocket"), ("data: missing", "[data]")]),
    "a typo at the top": Nasty(
        'bsae = "pocket"\n[data]\npath = "mug"', [("bsae: no such key", "did you mean base?"), ("base: missing",)]
    ),
    "three typos": Nasty(
        SOUND + "resoluton = 512\n[trian]\nsteps = 3\n[optimizer]\nlerning_rate = 1e-4",
        [
            ("data.resoluton: no such key", "did you mean data.resolution?"),
            ("trian: no such key", "did you mean train?"),
            ("optimizer.lerning_rate: no such key", "did you mean optimizer.learning_rate?"),
        ],
    ),
    "words of other trainers": Nasty(
        SOUND + "[optimizer]\nlr = 1e-4\n[train]\nbatch_size = 2\nmax_train_steps = 9\n[lora]\ndim = 4",
        [
            ("optimizer.lr", "optimizer.learning_rate?"),
            ("train.batch_size", "train.batch?"),
            ("train.max_train_steps", "train.steps?"),
            ("lora: no such key", "adapter?"),
        ],
    ),
    "right keys in the wrong table": Nasty(
        SOUND.replace("[data]", 'trigger = "sks"\n[data]') + "batch = 3\n[adapter]\nlearning_rate = 1e-4\nsteps = 9",
        [
            ("trigger: no such key", "did you mean data.trigger?"),
            ("data.batch: no such key", "did you mean train.batch?"),
            ("adapter.learning_rate: no such key", "did you mean optimizer.learning_rate?"),
            ("adapter.steps: no such key", "did you mean train.steps?"),
        ],
    ),
    "a key like nothing": Nasty(SOUND + "[train]\nzzz = 1", [("train.zzz: no such key",)]),
    "text for numbers": Nasty(
        SOUND + '[train]\nsteps = "100"\nseed = "many"\n[optimizer]\nlearning_rate = "1e-4"',
        [
            ("train.steps: needs a whole number", '"100"', "leave out the quotes"),
            ("train.seed: needs a whole number", '"many"'),
            ("optimizer.learning_rate: needs a number", '"1e-4"', "leave out the quotes"),
        ],
    ),
    "numbers for text": Nasty(
        "base = 15\n[data]\npath = 4\ntrigger = 7\n[export]\ntitle = 2024-01-01",
        [
            ("base: needs text in quotes", "15"),
            ("data.path: needs a path", "4"),
            ("data.trigger: needs text in quotes", "7"),
            ("export.title: needs text in quotes", "2024-01-01"),
        ],
    ),
    "switches that are not": Nasty(
        SOUND
        + 'flip = "no"\nallow_uncaptioned = 1\n[train]\nbatch = true\ncompile = "true"\n[optimizer]\nbeta1 = true',
        [
            ("data.flip: needs true or false", '"no"'),
            ("data.allow_uncaptioned: needs true or false", "1"),
            ("train.batch: needs a whole number", "true"),
            ("train.compile: needs true or false", "leave out the quotes"),
            ("optimizer.beta1: needs a number", "true"),
        ],
    ),
    "fractions for counts": Nasty(
        SOUND + "[train]\nsteps = 1.5\n[sample]\nevery = 2.0",
        [("train.steps: needs a whole number", "1.5"), ("sample.every: needs a whole number", "2.0")],
    ),
    "bad choices": Nasty(
        SOUND + 'crop = "middle"\n[optimizer]\nname = "adam"\nschedule = "Cosine"\n[train]\nprecision = "half"',
        [
            ("data.crop", '"middle" is not one of "center", "random"'),
            ("optimizer.name", '"adam" is not one of', 'did you mean "adamw"?'),
            ("optimizer.schedule", '"Cosine" is not one of', 'did you mean "cosine"?'),
            ("train.precision", '"half" is not one of "auto", "fp32", "bf16", "fp16"'),
        ],
    ),
    "bad choices in lists": Nasty(
        SOUND + '[adapter]\ncomponents = ["unet", "clip"]\n[export]\nlayouts = ["universal", "kohya"]',
        [
            ("adapter.components", '"unet" is not one of "denoiser", "text_encoder"'),
            ("adapter.components", '"clip" is not one of'),
            ("export.layouts", '"kohya" is not one of "universal", "diffusers", "merged"'),
        ],
    ),
    "text for lists": Nasty(
        SOUND + '[adapter]\ncomponents = "denoiser"\n[sample]\nprompts = "a mug"',
        [
            ("adapter.components: needs a list", '["denoiser"]'),
            ("sample.prompts: needs a list", '["a mug"]'),
        ],
    ),
    "empty lists and texts": Nasty(
        'base = ""\n[data]\npath = ""\ntrigger = ""\n[adapter]\ncomponents = []\ntargets = []',
        [
            ("base: must not be empty",),
            ("data.path: must not be empty",),
            ("data.trigger: must not be empty",),
            ("adapter.components: must name at least one",),
            ("adapter.targets: needs the name of a preset, or a list", "got []"),
        ],
    ),
    "patterns that are none": Nasty(
        SOUND + '[adapter]\ntargets = 3\nranks = {to_q = "4", to_k = 0}',
        [
            ("adapter.targets: needs the name of a preset, or a list", "got 3"),
            ("adapter.ranks.to_q: needs a whole number", "leave out the quotes"),
            ("adapter.ranks.to_k: must be at least 1",),
        ],
    ),
    "written twice": Nasty(
        SOUND + '[adapter]\ncomponents = ["denoiser", "denoiser"]\n[export]\nlayouts = ["merged", "merged"]',
        [("adapter.components", '"denoiser" is written twice'), ("export.layouts", '"merged" is written twice')],
    ),
    "out of range": Nasty(
        SOUND + "max_aspect = 9\n[train]\nsteps = 0\nbatch = -1\n[adapter]\nrank = 4096\n[sample]\nguidance = -1",
        [
            ("data.max_aspect: must be at most 4, got 9",),
            ("train.steps: must be at least 1, got 0",),
            ("train.batch: must be at least 1, got -1",),
            ("adapter.rank: must be at most 1024",),
            ("sample.guidance: must be at least 0",),
        ],
    ),
    "on the open end of a range": Nasty(
        SOUND + "caption_dropout = 1.0\n[optimizer]\nbeta2 = 1\nepsilon = 0.0\n[objective]\nmin_snr = 0",
        [
            ("data.caption_dropout: must be below 1, got 1.0",),
            ("optimizer.beta2: must be below 1",),
            ("optimizer.epsilon: must be above 0",),
            ("objective.min_snr: must be above 0",),
        ],
    ),
    "not finite": Nasty(
        SOUND + "max_aspect = inf\n[optimizer]\nlearning_rate = nan\nweight_decay = -inf",
        [
            ("data.max_aspect: needs a finite number",),
            ("optimizer.learning_rate: needs a finite number",),
            ("optimizer.weight_decay: needs a finite number",),
        ],
    ),
    "a seed that no generator takes": Nasty(
        SOUND + "[train]\nseed = 99999999999999999999\n[sample]\nseed = -1",
        [("train.seed: must be below",), ("sample.seed: must be at least 0",)],
    ),
    "steps and epochs": Nasty(
        SOUND + "[train]\nsteps = 5\nepochs = 2\nbatch = 0",
        [("train.steps and train.epochs decide the same thing",), ("train.batch: must be at least 1",)],
    ),
    "a prior that is off": Nasty(
        SOUND + '[prior]\npath = "mugs"\nweight = 2.0\nprompt = "a mug"',
        [
            ('prior.path: no such key with prior.mode = "off"', 'it belongs to prior.mode = "images"'),
            ("prior.weight: no such key", 'it belongs to prior.mode = "images" or "own_prediction"'),
            ("prior.prompt: no such key", 'it belongs to prior.mode = "images"'),
        ],
    ),
    "a typo in a table that chooses its keys": Nasty(
        SOUND + '[adapter]\nmethod = "full"\nrnak = 8\ncomponets = ["denoiser"]\nlearning_rate = 1.0\nzzz = 1',
        [
            ("adapter.rnak: no such key with", 'did you mean adapter.rank, of adapter.method = "lora" or "dora"?'),
            ("adapter.componets: no such key; did you mean adapter.components?",),
            ("adapter.learning_rate: no such key; did you mean optimizer.learning_rate?",),
            ('adapter.zzz: no such key with adapter.method = "full"',),
        ],
    ),
    "a choice that there is not, and the other keys of its table": Nasty(
        SOUND
        + '[adapter]\nmethod = "loar"\nrank = "8"\n[prior]\nmode = 3\nweight = 1.0\n[optimizer]\nname = ["adamw"]',
        [
            ("adapter.method", '"loar" is not one of "lora", "dora", "full"; did you mean "lora"?'),
            ("adapter.rank: needs a whole number", "leave out the quotes"),
            ("prior.mode", '3 is not one of "off", "images", "own_prediction"'),
            ("prior.weight: no such key",),
            ("optimizer.name", '["adamw"] is not one of "adamw", "adamw8bit", "adafactor"'),
        ],
    ),
    "a choice spelled almost right, and a key of its own": Nasty(
        SOUND + '[optimizer]\nname = "adafactr"\nbeta2_decay = -0.5\nclip_threshold = 0.5',
        [
            ("optimizer.name", 'did you mean "adafactor"?'),
            ("optimizer.clip_threshold: must be at least 1, got 0.5",),
        ],
    ),
    "a prior of images without images": Nasty(
        SOUND + '[prior]\nmode = "images"', [("prior.path: missing", "needs a folder of class images")]
    ),
    "a prior of its own with images": Nasty(
        SOUND + '[prior]\nmode = "own_prediction"\npath = "mugs"\nprompt = "a mug"',
        [
            (f'prior.{k}: no such key with prior.mode = "own_prediction"', 'belongs to prior.mode = "images"')
            for k in ("path", "prompt")
        ],
    ),
    "an adapter's settings without an adapter": Nasty(
        SOUND + '[adapter]\nmethod = "full"\nrank = 8\nalpha = 4\ndropout = 0.1\n[prior]\nmode = "own_prediction"\n'
        '[export]\nlayouts = ["merged"]',
        [
            (f'adapter.{k}: no such key with adapter.method = "full"', 'belongs to adapter.method = "lora"')
            for k in ("rank", "alpha", "dropout")
        ]
        + [("export.layouts: has no effect",), ("prior.mode", "needs an adapter that can be switched off")],
    ),
    "settings of a part that is not trained": Nasty(
        SOUND + '[adapter]\ntext_encoder_targets = "all"\n[optimizer]\ntext_encoder_learning_rate = 1e-5',
        [
            ("adapter.text_encoder_targets: has no effect without a text encoder",),
            ("optimizer.text_encoder_learning_rate: has no effect without a text encoder",),
        ],
    ),
    "targets of a denoiser that is not trained": Nasty(
        SOUND + '[adapter]\ncomponents = ["text_encoder"]\ntargets = "all"',
        [("adapter.targets: has no effect without the denoiser",)],
    ),
    "more settings without effect": Nasty(
        SOUND + '[validation]\nevery = 5\n[sample]\nguidance = 1\nnegative = "blurry"',
        [
            ("validation.every: has no effect with validation.count = 0",),
            ("sample.negative: has no effect with sample.guidance at 1 or less",),
        ],
    ),
    "values for tables": Nasty(
        'base = "pocket"\ndata = "mug"\ntrain = 300',
        [("data: is a table, [data]", '"mug"'), ("train: is a table, [train]", "300")],
    ),
    "tables for values": Nasty(
        SOUND + "[data.trigger]\nword = 1\n[train.steps]\nmost = 9",
        [("data.trigger: needs text in quotes",), ("train.steps: needs a whole number",)],
    ),
    "a list of tables": Nasty('base = "pocket"\n[[data]]\npath = "mug"', [("data: is a table, [data]",)]),
    "a name that is no file name": Nasty(
        'name = "../mug"\n' + SOUND, [("name: may have letters, digits, dots", '"../mug"')]
    ),
}
UNREADABLE = {
    "text without quotes": ("base = pocket\n", "is not TOML", "base = pocket", "in quotes"),
    "yaml": ("base: pocket\ndata:\n  path: mug\n", "is not TOML", "base: pocket", "key = value"),
    "a key twice": ('base = "a"\nbase = "b"\n', "is not TOML", "line 2", "written once"),
    "a table twice": (SOUND + "[train]\n[train]\n", "is not TOML", "line 5", "written once"),
    "a Windows path": ('base = "C:\\new"\n[data]\npath = "C:\\mug"\n', "is not TOML", "C:\\mug", "single quotes"),
    "UTF-16": (SOUND.encode("utf-16"), "is not UTF-8", "byte 0", "UTF-8"),
    "Latin-1": ('base = "café"\n'.encode("latin-1"), "is not UTF-8", "byte 11", "UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00", "is not UTF-8", "byte 0", "UTF-8"),
    "NUL": (b"base = 'a'\n\x00\n", "is not TOML", "line 2", ""),
}


def refused(path: Path, *sets: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        recipe.load(path, sets)
    return caught.value


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_there_are_thirty_nasty_recipes_and_more():
    assert len(NASTY) + len(UNREADABLE) >= 40


@pytest.mark.parametrize("nasty", NASTY.values(), ids=NASTY)
def test_every_problem_is_named_once_with_its_key_and_the_nearest_right_name(nasty: Nasty, tmp_path):
    path = written(tmp_path, nasty.text)
    assert calls(lambda: refused(path)) < 60_000, "one with six problems takes 12,000"
    error = refused(path)
    head, *problems = error.problem.splitlines()
    for words in nasty.says:
        hits = [p for p in problems if all(word in p for word in words)]
        assert len(hits) == 1, f"{words} in\n{error.problem}"
    assert len(problems) == len(nasty.says), error.problem
    assert head.endswith(f"{len(problems)} problem{'s' * (len(problems) > 1)}") and str(tmp_path / "mine.toml") in head
    assert error.exit_code == 2 and error.hint
    python = r"\b(tuple|dict|Input|input should|after validation|validation error|default factory)\b"
    assert not re.search(python, error.problem)


@pytest.mark.parametrize("text, what, where, hint", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_says_what_it_is_and_where(text, what, where, hint, tmp_path):
    error = refused(written(tmp_path, text))
    assert what in error.problem and where in error.problem and hint in error.hint and error.exit_code == 2


def test_the_command_answers_without_importing_what_trains(tmp_path):
    for name in ("three typos", "switches that are not", "empty"):
        answer = answered("train", written(tmp_path, NASTY[name].text), "--out", tmp_path / "run")
        assert answer.exit_code == 2 and not answer.stdout, answer.stderr
        assert answer.stderr.startswith("error: ") and "\n  try: " in answer.stderr and "problem" in answer.stderr
        assert not {"torch", "numpy", "diffusers", "transformers", "PIL", "rich"} & answer.modules
        assert len(answer.modules) < 350, "a bare interpreter's modules not counted"
        assert not (tmp_path / "run").exists()
    script = (
        "import sys; from pathlib import Path; from finetune import recipe\n"
        "recipe.load(Path('pocket-product'))\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'peft', 'datasets', 'PIL', 'tomlkit', 'rich'}\n"
        "raise SystemExit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_byte_order_mark_is_no_problem(tmp_path):
    plain = recipe.load(written(tmp_path, SOUND)).recipe
    assert recipe.load(written(tmp_path, b"\xef\xbb\xbf" + SOUND.encode())).recipe == plain


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest_one(tmp_path):
    error = refused(Path("pocket-prodcut"))
    assert "not a file, not a shipped recipe" in error.problem and error.hint == "did you mean pocket-product?"
    assert "recipes list" in refused(Path("qqqq")).advice
    assert f"{tmp_path} is a folder" in refused(tmp_path).problem
    inside = written(tmp_path, SOUND)
    assert refused(tmp_path).hint == f"did you mean {inside}?"


def test_an_unreadable_file_says_why(tmp_path, monkeypatch):
    path = written(tmp_path, SOUND)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    error = refused(path)
    assert "Permission denied" in error.problem and error.hint


BAD_SETS = {
    "steps": "write it as table.key=value",
    "=3": "write it as table.key=value",
    "train..steps=3": "write it as table.key=value",
    ".steps=3": "write it as table.key=value",
    "base.x=3": "'base' is a value, not a table",
    "data.path.x=3": "'path' is a value, not a table",
    "train=3": "train: is a table, [train]",
    "trian.steps=3": "trian: no such key; did you mean train?",
    "train.step=3": "train.step: no such key; did you mean train.steps?",
    "train.steps=abc": 'train.steps: needs a whole number, got "abc"',
    "train.steps=": 'train.steps: needs a whole number, got ""',
    "train.steps=3\nbatch=4": "more than one value",
    "data.resolution=512px": 'data.resolution: needs a whole number, got "512px"',
    "adapter.components=text_encoder": 'needs a list: ["text_encoder"]',
    "data.flip=True": 'data.flip: needs true or false, got "True"',
    "data.trigger=42": "data.trigger: needs text in quotes, got 42",
}


@pytest.mark.parametrize("item", BAD_SETS)
def test_a_bad_set_is_refused_in_words(item, tmp_path):
    assert BAD_SETS[item] in refused(written(tmp_path, SOUND), item).problem


def test_problems_of_the_file_and_of_several_sets_are_told_together(tmp_path):
    path = written(tmp_path, SOUND + "[train]\nbtach = 3")
    problem = refused(path, "nonsense", "train.seed=x", "optimzer.name=adamw").problem
    assert "4 problems" in problem
    assert all(word in problem for word in ("train.btach", "'nonsense'", "train.seed", "did you mean optimizer?"))


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


def _random_tables(chance: random.Random) -> dict[str, dict[str, object] | str]:
    letters = string.printable + "äß中🐕\u200b"

    def text() -> str:
        return "".join(chance.choice(letters) for _ in range(chance.randint(1, 12)))

    def prompt() -> str:
        return re.sub("[{}]", "", text()) + chance.choice(["", "{trigger}", " {class_word}"])

    number = 10 ** chance.uniform(-12, 3)
    method, mode = chance.choice(["lora", "full"]), chance.choice(["off", "images", "own_prediction"])
    tables: dict[str, dict[str, object] | str] = {
        "base": text(),
        "data": {"path": Path(text().replace("\0", "")), "trigger": text(), "flip": chance.random() < 0.5},
        "adapter": {"method": method, "components": ("denoiser", "text_encoder")[: chance.randint(1, 2)]},
        "optimizer": {"learning_rate": number, "epsilon": number / 7, "warmup_steps": chance.randrange(2**60)},
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


def test_the_hint_points_at_the_recipe_in_hand(tmp_path):
    path = written(tmp_path, SOUND + "zzz = 1")
    assert refused(path).hint == f"correct {path}; docs/recipes.md lists every key and its values"
    assert refused(path, "train.steps=1").hint.startswith(f"correct {path} or the override;")
    shipped_one = refused(Path("pocket-style"), "train.stepz=1")
    assert shipped_one.hint == "correct the override; see the recipe that it changes"
    assert shipped_one.action is not None and shipped_one.action.arguments == {"name": "pocket-style"}
