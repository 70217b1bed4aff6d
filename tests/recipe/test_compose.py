"""A recipe that extends others is one whole text, with their comments; the nearer word wins."""

import json
import tomllib
from pathlib import Path

import pytest

from finetune import recipe
from finetune import resources as shipped
from finetune.errors import RecipeError

NAMES = sorted(p.stem for p in shipped.RECIPES.glob("*.toml"))
VALUES = json.loads((Path(__file__).parent / "shipped.json").read_text(encoding="utf-8"))


def files(folder: Path, **texts: str) -> Path:
    """NAME.toml for each; the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(texts))}.toml"


def whole(folder: Path, **texts: str) -> str:
    return recipe.whole_text(files(folder, **texts))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_has_the_values_it_had_when_it_was_written_out(name: str) -> None:
    """shipped.json holds what each had that was no default, before recipes were composed."""
    loaded = recipe.load(Path(name)).recipe
    plain = recipe.replace(recipe.Recipe.model_validate({"base": "x", "data": {"path": Path("x")}}))
    plain = recipe.replace(plain, adapter__method=loaded.adapter.method, prior__mode=loaded.prior.mode,
                           **({"prior__path": Path("x")} if loaded.prior.mode == "images" else {}))  # fmt: skip
    tables = loaded.model_dump(mode="json")
    for key in recipe.keys():
        here, default = recipe.value(loaded, key), recipe.value(plain, key)
        dumped = tables.get(key) if "." not in key else tables[key.partition(".")[0]].get(key.partition(".")[2])
        assert VALUES[name].get(key, default) in (here, dumped), key
    assert NAMES == sorted(VALUES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_the_merger_of_the_pieces_and_stands_alone(name: str, tmp_path: Path) -> None:
    text = recipe.whole_text(shipped.RECIPES / f"{name}.toml")
    raw = tomllib.loads(text)
    assert raw == _merged(name) and "extends" not in raw
    (tmp_path / "mine.toml").write_text(text)
    assert recipe.load(tmp_path / "mine.toml").recipe == recipe.load(Path(name)).recipe
    assert len(text.splitlines()) > 20 and "\n\n\n" not in text


def _merged(name: str) -> dict[str, object]:
    """By dictionaries, an implementation of its own."""
    raw = tomllib.loads((shipped.RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    found: dict[str, object] = {}
    for one in [*map(_merged, raw.pop("extends", [])), raw]:
        for key, value in one.items():
            before = found.get(key)
            found[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return found


def test_the_pieces_take_less_than_half_of_the_lines_that_they_make() -> None:
    """Nine lines of ten stood in another recipe too."""
    written = sum(len(p.read_text().splitlines()) for p in shipped.RECIPES.rglob("*.toml"))
    shown = sum(len(recipe.whole_text(shipped.RECIPES / f"{name}.toml").splitlines()) for name in NAMES)
    assert written < shown / 2


def test_the_nearer_word_wins_with_its_comment_and_the_head_is_the_recipes_own(tmp_path: Path) -> None:
    text = whole(
        tmp_path,
        mine='# Mine.\n# Second line.\nextends = ["far", "near"]\n\n[train]\nbatch = 3\n',
        far='# Far.\nbase = "x"\n\n[train]\n# many\nsteps = 9\n# few\nbatch = 1\n\n[data]\n# where\npath = "y"\n',
        near="[train]\n# more\nsteps = 10 # at last\n[adapter]\nrank = 2\n",
    )
    assert text == (
        '# Mine.\n# Second line.\nbase = "x"\n\n[data]\n# where\npath = "y"\n\n[adapter]\nrank = 2\n\n'
        "[train]\n# more\nsteps = 10 # at last\nbatch = 3\n"
    )


def test_a_recipe_extends_files_beside_it_shipped_ones_and_what_they_extend(tmp_path: Path) -> None:
    path = files(
        tmp_path, mine='extends = "ours"\n[train]\nseed = 7\n', ours='extends = ["sdxl-style"]\n[adapter]\nrank = 3\n'
    )
    loaded, plain = recipe.load(path), recipe.load(Path("sdxl-style")).recipe
    assert loaded.recipe == recipe.replace(plain, adapter__rank=3, train__seed=7)
    assert loaded.sources["adapter.targets"] == loaded.sources["train.seed"] == "file"
    assert set(loaded.sources) <= set(recipe.keys())
    assert recipe.load(path, ["adapter.rank=5"]).recipe.adapter == recipe.replace(plain, adapter__rank=5).adapter


def test_what_the_nearer_rules_out_of_the_farther_goes(tmp_path: Path) -> None:
    far = 'base = "x"\n[data]\npath = "y"\n[train]\nsteps = 9\n[adapter]\nrank = 4\ncomponents = ["text_encoder"]\n'
    far += '[optimizer]\nbeta1 = 0.5\nlearning_rate = 1.0\n[prior]\nmode = "images"\npath = "z"\nweight = 0.5\n'
    near = 'extends = ["far"]\n[train]\nepochs = 2\n[adapter]\nmethod = "full"\n[optimizer]\nname = "adafactor"\n'
    loaded = recipe.load(files(tmp_path, near=near + '[prior]\nmode = "off"\n', far=far)).recipe
    assert (loaded.train.steps, loaded.train.epochs) == (None, 2)
    assert loaded.adapter == recipe.FullWeights(components=("text_encoder",))
    assert loaded.optimizer == recipe.Adafactor(learning_rate=1.0) and loaded.prior == recipe.NoPrior()
    kept = recipe.load(files(tmp_path, near='extends = ["far"]\n[optimizer]\nname = "adamw8bit"\n', far=far)).recipe
    assert kept.optimizer == recipe.AdamW8bit(beta1=0.5, learning_rate=1.0) and kept.adapter.rank == 4


def test_values_of_many_lines_quoted_and_dotted_keys_are_kept(tmp_path: Path) -> None:
    far = (
        'base = "x"\ndata.path = "y" # dotted\ndata.trigger = \'a = "b"\'\n'
        '[sample]\nprompts = [\n  # first\n  "a # b",\n\n'
        '  "[c]",\n]\nnegative = """\nmany\n[train]\nlines"""\n[adapter.ranks]\n"to.q" = 2\nto_k = 3\n'
    )
    near = 'extends = ["far"]\ndata.flip = true\n[adapter]\nrank = 4\n[adapter.ranks]\nto_k = 4\n'
    path = files(tmp_path, near=near, far=far)
    assert tomllib.loads(recipe.whole_text(path)) == {
        "base": "x", "data": {"path": "y", "trigger": 'a = "b"', "flip": True},
        "sample": {"prompts": ["a # b", "[c]"], "negative": "many\n[train]\nlines"},
        "adapter": {"rank": 4, "ranks": {"to.q": 2, "to_k": 4}},
    }  # fmt: skip
    assert "# dotted" in recipe.whole_text(path) and "  # first\n" in recipe.whole_text(path)


def test_a_recipe_that_extends_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    text = '\n# odd\n\nbase="x" # y\n  [ data ]\n\n\npath = "z"\n# end\n'
    assert whole(tmp_path, mine=text) == text


BAD = {
    'extends = ["nowhere"]': ("extends 'nowhere': no such file", "recipes list"),
    "extends = 3": ("extends needs the name of a recipe", "extends = ["),
    "extends = [3]": ("extends needs the name of a recipe", "extends = ["),
    'extends = ["mine"]': ("extends itself", "leave it out"),
    'extends = ["other"]': ("extends itself, by way of other.toml", "leave it out"),
    'extends = ["broken"]': ("broken.toml is not TOML", "written once"),
}


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_extended_is_said_with_what_to_do(text: str, tmp_path: Path) -> None:
    path = files(tmp_path, mine=text, other='extends = ["mine"]', broken="base = 1\nbase = 2")
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    problem, hint = BAD[text]
    assert problem in caught.value.problem and hint in caught.value.advice


def test_a_typo_in_a_recipe_that_extends_others_is_named_in_that_recipe(tmp_path: Path) -> None:
    path = files(tmp_path, mine='extends = ["flux-product"]\n[train]\nstepz = 3\n')
    with pytest.raises(RecipeError, match=r"mine\.toml: 1 problem\n  train\.stepz: no such key; did you mean"):
        recipe.load(path)
