"""A recipe that is wrong is refused with every problem named, its key and the nearest right name."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support.command import answered, calls
from support.recipes import SOUND, refused, written

from finetune import reading, recipe


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
        SOUND + '[evaluate]\npatience = 5\n[sample]\nguidance = 1\nnegative = "blurry"',
        [
            ("evaluate.patience: has no effect without evaluate.stop",),
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

    monkeypatch.setattr(reading, "_opened", denied)
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


def test_the_hint_points_at_the_recipe_in_hand(tmp_path):
    path = written(tmp_path, SOUND + "zzz = 1")
    assert refused(path).hint == f"correct {path}; docs/recipes.md lists every key and its values"
    assert refused(path, "train.steps=1").hint.startswith(f"correct {path} or the override;")
    shipped_one = refused(Path("pocket-style"), "train.stepz=1")
    assert shipped_one.hint == "correct the override; see the recipe that it changes"
    assert shipped_one.action is not None and shipped_one.action.arguments == {"name": "pocket-style"}
