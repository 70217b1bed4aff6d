"""What the command line says when something is wrong: the exit codes, the thing and the next step."""

import ast
import json
import shlex
from pathlib import Path

import pytest
from support.command import ran, said
from typer.main import get_command

import finetune
from finetune import cli, errors, recipe
from finetune.cli.wording import command_of, flags, with_commands, written

# --- errors ----------------------------------------------------------------------------------------------------------


def classes(kind: type[errors.FinetuneError]) -> list[type[errors.FinetuneError]]:
    return [kind, *(inner for below in kind.__subclasses__() for inner in classes(below))]


CODES = {
    "FinetuneError": 1, "InputError": 2, "RecipeError": 2, "DataError": 2, "BaseError": 2, "RunError": 2,
    "MemoryShortage": 3, "TrainError": 4, "NotLearnt": 4, "VerifyError": 5, "Interrupted": 130, "PeerLost": 130,
}  # fmt: skip


def test_the_tree_of_errors_is_the_one_that_is_promised():
    assert {
        c.__name__: c.exit_code for c in classes(errors.FinetuneError) if c.__module__ == "finetune.errors"
    } == CODES


@pytest.mark.parametrize("name", CODES)
def test_an_error_is_printed_with_its_hint_and_sets_the_exit_code(name, capsys, monkeypatch):
    def raising(*_):
        raise getattr(errors, name)("the thing is broken", "mend it")

    monkeypatch.setattr(recipe, "find_recipe", raising)
    code, out, err = said(capsys, "recipes", "show", "x")
    assert (code, out, err) == (CODES[name], "", "error: the thing is broken\n  try: mend it\n")


@pytest.mark.parametrize("arguments", [("recipes", "show", "x", "--json"), ("--json", "recipes", "show", "x")])
def test_with_json_an_error_is_one_json_line_on_stderr(arguments, capsys, monkeypatch):
    def raising(*_):
        raise errors.VerifyError("the thing is broken", "mend it", errors.action("verify", file="a b", base="pocket"))

    monkeypatch.setattr(recipe, "find_recipe", raising)
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (5, "") and err.count("\n") == 1
    assert json.loads(err) == {
        "error": "the thing is broken", "try": "mend it: finetune verify 'a b' --base pocket", "exit_code": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("plan", "--json", "--bogus"), "--bogus"),
        (("--json", "plan"), "recipe"),
        (("tarin", "--json"), "tarin"),
        (("recipes", "lst", "--json"), "lst"),
        (("sample", "--json", "--base", "x", "--out", "y", "--precision", "fp8"), "fp8"),
    ],
)
def test_with_json_misuse_is_one_json_line_too(arguments, told, capsys):
    code, out, err = said(capsys, *arguments)
    error = json.loads(err)
    assert (code, out, err.count("\n"), error["exit_code"]) == (2, "", 1, 2)
    assert told in error["error"].lower() and error["try"].endswith("--help")


STEPS = [
    (errors.action("train", recipe=Path("a/recipe.toml"), out="a b", resume=True),
     "finetune train a/recipe.toml --out 'a b' --resume"),
    (errors.action("export", source="RUN", layout="universal"), "finetune export --from RUN --layout universal"),
    (errors.action("check", path="x", trigger=None, class_word="mug"), "finetune check x --class-word mug"),
    (errors.action("cache clear"), "finetune cache clear"),
]  # fmt: skip


@pytest.mark.parametrize("step, command", STEPS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_next_step_is_written_as_a_command_that_can_be_given(step, command):
    assert written(step, get_command(cli.app)) == command
    _, *words = shlex.split(command)
    get_command(cli.app).make_context("finetune", words[:1])  # the command exists
    own = command_of(get_command(cli.app), words)
    own.make_context(own.name, words[len(step.name.split()) :])  # and takes these arguments


def test_from_python_an_error_names_arguments_and_calls():
    error = errors.RunError("`out` is not empty", "go on", errors.action("train", recipe=Path("r.toml"), resume=True))
    assert str(error) == "`out` is not empty"
    assert error.__notes__ == ["try: go on: train(recipe='r.toml', resume=True)"]
    assert not hasattr(errors.RunError("broken"), "__notes__")


def test_arguments_are_named_as_the_flags_of_the_command_that_failed_and_nothing_else_is():
    text = "`base_bits` or `merged`; `source` is `pocket`, `epsilon`"
    assert flags(text, command_of(get_command(cli.app), ["sample"])) == (
        "--base-bits or --merged; `source` is `pocket`, `epsilon`"
    )
    assert "--from is" in flags(text, command_of(get_command(cli.app), ["export"]))


def test_an_error_without_a_hint_prints_no_empty_one(capsys, monkeypatch):
    def raising(*_):
        raise errors.RunError("the thing is broken")

    monkeypatch.setattr(recipe, "find_recipe", raising)
    assert said(capsys, "recipes", "show", "x")[2] == "error: the thing is broken\n"


def test_ctrl_c_exits_130(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "find_recipe", interrupted)
    code, _, err = said(capsys, "recipes", "show", "x")
    assert code == 130 and "Traceback" not in err


def test_what_is_no_error_of_the_tree_is_our_bug_and_keeps_its_traceback():
    code = (
        "import sys; sys.argv[1:] = ['recipes', 'show', 'x']\n"
        "from finetune import cli; from finetune import recipe\n"
        "def raising(*_): raise ZeroDivisionError('a bug of ours')\n"
        "recipe.find_recipe = raising\n"
        "cli.main()"
    )
    done = ran(code=code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError: a bug of ours" in done.stderr


def test_every_error_the_package_raises_says_what_to_do():
    """Most errors have a hint; those that have none name the remedy themselves."""
    names = set(CODES) - {"FinetuneError"}
    bare = []
    for path in sorted(Path(finetune.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                call = node.exc
                one = len(call.args) + len(call.keywords) == 1 and not isinstance(call.args[0], ast.Starred)
                if call.func.id in names and one:
                    bare.append(f"{path.name}: {ast.unparse(call.args[0])}")
    allowed = ("write it as", "must be multiples", "one of", "missing, and there is no data.class_word")
    assert not [b for b in bare if not any(word in b for word in allowed)]


# --- bad input of other commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base, words",
    [
        ("./nowhere", ["no base ./nowhere", "diffusers folder"]),
        ("models/../x.safetensors", ["no base models/../x.safetensors"]),
        ("someone/their-model", ["someone/their-model", "the hub"]),
        ("EMPTY", ["is not a base this version trains", "no model_index.json"]),
        ("PICKLE", ["pickled file", "convert it once"]),
        ("XL", ["is not a base this version trains", "KandinskyPipeline", "families known: sd, sdxl"]),
    ],
)
def test_a_base_that_is_none_exits_2_in_words(base, words, capsys, tmp_path):
    for folder in ("EMPTY", "XL"):
        (tmp_path / folder).mkdir()
    (tmp_path / "XL" / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    (tmp_path / "PICKLE.ckpt").write_bytes(b"\x80\x02.")
    named = {"EMPTY": tmp_path / "EMPTY", "PICKLE": tmp_path / "PICKLE.ckpt", "XL": tmp_path / "XL"}.get(base, base)
    code, _, err = said(capsys, "plan", "pocket-product", "--set", f"base={named}")
    assert code == 2 and err.startswith("error: ") and "try:" in err
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("plan", "pocket-product", "--set", "data.path=none"), "no folder"),
        (("plan", "pocket-product", "--set", "data.trigger=other"), "'sks'"),
        (("train", "none.toml", "--out", "OUT"), "no recipe none.toml"),
        (("train", "pocket-product", "--out", "FULL"), "is not empty"),
        (("train", "pocket-product", "--out", "OUT", "--resume"), "no run to resume"),
        (("inspect", "none.safetensors"), "none.safetensors"),
        (("verify", "none.safetensors", "--base", "pocket"), "none.safetensors"),
        (("verify", "none.safetensors", "--base", "pocket", "--base-bits", "8"), "--base-bits 8"),
        (("export", "--from", "none.safetensors"), "none.safetensors"),
        (("sample", "--base", "pocket", "--out", "OUT"), "no prompt"),
        (("sample", "--base", "pocket", "--out", "OUT", "--prompt", "a cup", "--adapter", "none"), "no adapter file"),
        (("sample", "--base", "pocket", "--out", "OUT", "--prompts", "none.txt"), "cannot read none.txt"),
        (("quickstart", "--out", "FULL"), "is not empty"),
        (("prepare", "none", "--out", "OUT"), "no folder"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input_exits_2_with_the_thing_and_the_next_step(arguments, words, capsys, tmp_path):
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "precious.txt").write_text("mine")
    places = {name: str(tmp_path / name) for name in ("OUT", "FULL")}
    code, _, err = said(capsys, *(places.get(a, a) for a in arguments))
    assert code == 2 and err.startswith("error: ") and words in err and "\n  try: " in err, err
    assert not (tmp_path / "OUT").exists()
    assert [p.name for p in (tmp_path / "FULL").iterdir()] == ["precious.txt"]


def test_calls_in_a_sentence_are_commands():
    said = with_commands("captions are better, and caption(path='my photos', vocabulary='pocket') writes them")
    assert said == "captions are better, and `finetune caption 'my photos' --vocabulary pocket` writes them"
    for other in ("a (small='x') b", "run(x='y')", "caption(path=photos)"):
        assert with_commands(other) == other
