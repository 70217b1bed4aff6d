"""The command line: quick to answer, the same manners everywhere, and the exit codes scripts rely on."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.command import answered, ran, said
from support.photos import pictures
from typer.main import get_command
from typer.testing import CliRunner

import finetune
from finetune import cli
from finetune import resources as shipped

COMMANDS = {
    "status": ("RUN", "--follow", "--json", "--quiet"),
    "compare": (
        "RUN|FILE",
        "--weights",
        "--steps",
        "--prompt",
        "--prompts",
        "--seed",
        "--count",
        "--base",
        "--data",
        "--judge",
        "--out",
        "--json",
        "--quiet",
    ),
    "quickstart": ("--out", "--style", "--quiet"),
    "doctor": ("--json", "--quiet"),
    "prepare": (
        "SOURCE",
        "--out",
        "--split",
        "--subset",
        "--image-column",
        "--caption-column",
        "--ignore-column",
        "--limit",
        "--where",
        "--link",
        "--trigger",
        "--class-word",
        "--kind",
        "--template",
        "--captions-from",
        "--folder-names",
        "--json",
        "--background",
        "--mask-from",
        "--fix",
        "--threshold",
        "--quiet",
    ),
    "caption": ("PATH", "--vocabulary", "--judge", "--command", "--timeout", "--kind", "--again", "--json", "--quiet"),
    "mask": ("PATH", "--with", "--command", "--prompt", "--timeout", "--again", "--json", "--quiet"),
    "check": (
        "PATH",
        "--trigger",
        "--base",
        "--resolution",
        "--max-aspect",
        "--allow-uncaptioned",
        "--captions-from",
        "--folder-names",
        "--threshold",
        "--html",
        "--json",
        "--quiet",
    ),
    "recipes list": ("--json",),
    "recipes show": ("NAME", "--json"),
    "recipes copy": ("NAME", "TO"),
    "plan": ("RECIPE", "--set", "--measure", "--gpus", "--json", "--quiet"),
    "train": ("RECIPE", "--out", "--resume", "--set", "--json", "--quiet"),
    "export": ("--from", "--layout", "--out", "--base", "--dtype", "--json"),
    "verify": ("FILE", "--base", "--run", "--base-bits", "--json", "--quiet"),
    "inspect": ("FILE", "--json"),
    "report": ("RUN", "--out", "--json", "--quiet"),
    "evaluate": ("RUN|FILE", "--base", "--data", "--judge", "--count", "--json", "--quiet"),
    "sample": (
        *("--base", "--adapter", "--prompt", "--prompts", "--negative", "--seed", "--steps", "--guidance"),
        *("--scheduler", "--size", "--count", "--out", "--merged", "--no-safety-checker", "--trigger", "--class-word"),
        *("--precision", "--base-bits", "--text-encoder-bits", "--json", "--quiet"),
    ),
    "cache info": ("--root", "--json"),
    "cache clear": ("--root",),
}


LIGHT = {
    *("finetune", "typer", "pydantic", "pydantic_core", "shellingham"),
    *("annotated_doc", "annotated_types", "typing_extensions", "typing_inspection"),
}
"""packages that declare commands and recipes"""


# --- quick, and light ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--help",), ("recipes", "list")])
def test_help_and_the_list_of_recipes_import_little(arguments):
    """What an answer waits for: of other people's packages only those that declare commands and recipes."""
    answer = answered(*arguments)
    assert answer.exit_code == 0 and answer.stdout and not answer.stderr
    packages = {name.partition(".")[0] for name in answer.modules if not name.startswith(("_", "org"))}
    assert {"finetune", "typer"} <= packages
    assert packages - set(sys.stdlib_module_names) <= LIGHT
    assert len(answer.modules) < 350, "a bare interpreter's modules not counted"


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = ("torch", "diffusers", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "numpy", "PIL")
    done = ran(code=f"import sys, finetune.cli; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_plan_imports_no_diffusers_pipeline():
    code = (
        "import sys; sys.argv[1:] = ['plan', 'pocket-product', '--json']\n"
        "from finetune import cli\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "loaded = [m for m in sys.modules if m.startswith('diffusers.pipelines.') and '.pipeline_' in m]\n"
        "sys.stderr.write(' '.join(loaded))"
    )
    done = ran(code=code)
    assert done.returncode == 0 and done.stderr == "", "a pipeline, or another library's chatter"
    assert json.loads(done.stdout)["identity"]["steps"] == 300


# --- help ------------------------------------------------------------------------------------------------------------


def commands(app: typer.Typer) -> set[str]:
    groups = {g.name: g.typer_instance for g in app.registered_groups if g.typer_instance}
    own = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    return own | {f"{name} {inner}" for name, group in groups.items() for inner in commands(group)}


def test_the_commands_are_those_that_are_promised():
    assert commands(cli.app) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_names_its_options(command):
    shown = CliRunner().invoke(cli.app, [*command.split(), "-h"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    for option in COMMANDS[command]:
        assert option.lower() in shown.output.lower(), f"{option} in\n{shown.output}"
    told = [line.strip() for line in shown.output.splitlines() if line.strip()]
    assert len(told[1]) > 10 and told[1][0].isupper() and told[1].endswith("."), told[1]
    assert max(map(len, shown.output.splitlines())) <= 80


def described(command: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(where, help text) of every command, group and option."""
    yield name or "finetune", command.help or ""
    yield from ((f"{name} {p.name}", getattr(p, "help", "") or "") for p in command.params)
    for inner, below in getattr(command, "commands", {}).items():
        yield from described(below, f"{name} {inner}".strip())


def test_every_help_text_begins_with_its_subject_and_ends_its_sentence():
    for where, text in described(get_command(cli.app)):
        if where.endswith(("install_completion", "show_completion")):
            continue
        assert len(text) > 8 and (text[0].isupper() or text[0].isdigit() or text[:4] in ("`poc", "univ")), (where, text)
        assert not re.match(r"(Of|Whoever|Laid|Noted|May)\b", text) and text.rstrip()[-1] == ".", (where, text)


def test_the_version_is_printed(capsys):
    code, out, err = said(capsys, "--version")
    assert (code, out, err) == (0, f"finetune {finetune.__version__}\n", "")


def test_a_shell_is_offered_completion(monkeypatch):
    done = CliRunner().invoke(cli.app, [], prog_name="finetune", env={
        "_FINETUNE_COMPLETE": "complete_bash", "COMP_WORDS": "finetune pl", "COMP_CWORD": "1",
    })  # fmt: skip
    assert done.output.split() == ["plan"], done.output


def test_help_lists_every_command(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0 and all(name.split()[0] in out for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("tarin",),
        ("plan", "--bogus"),
        ("plan",),
        ("train", "pocket-product"),
        ("plan", "x", "--gpus", "0"),
        ("recipes", "lst"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_understood_exits_2(arguments, capsys):
    code, out, err = said(capsys, *arguments)
    assert code == 2 and not out and "Usage" in err and len(err) > 40


OF_OTHER_PROGRAMS = ("--logdir", "--project")
"""flags of those that show a run's curves"""


def test_the_library_speaks_of_no_flags_and_no_commands():
    """Sentences for Python, a page or a notebook, too: flags and commands are the command line's words."""
    names = "|".join({name.split()[0] for name in COMMANDS})
    spoken = re.compile(rf"(?<![\w-])--[a-z]|finetune ({names})\b")
    found = []
    for path in sorted(Path(finetune.__file__).parent.rglob("*.py")):
        if {"cli", "bundled"} & set(path.parts):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{path.name}:{n.lineno} {n.value[:60]!r}" for n in ast.walk(tree)
                  if isinstance(n, ast.Constant) and isinstance(n.value, str) and spoken.search(n.value)
                  and n.value not in OF_OTHER_PROGRAMS]  # fmt: skip
    assert not found
    assert spoken.search("choose another --out") and spoken.search("`finetune train x`")
    assert not spoken.search("a -- b") and not spoken.search("finetune trains")


# --- quiet and JSON ---------------------------------------------------------------------------------------------------

RUN = ("--set", "train.steps=2", "--set", "sample.every=0", "--set", "sample.steps=1", "--set", "data.resolution=32",
       "--set", "adapter.components=['denoiser']", "--set", "optimizer.learning_rate=1e-2",
       "--set", "evaluate.count=0")  # fmt: skip


@pytest.fixture
def hushed() -> Iterator[None]:
    """Libraries in this process are as quiet as `cli.hush` makes them in a process of its own."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    before = ours.get_verbosity(), theirs.get_verbosity()
    ours.set_verbosity_error(), theirs.set_verbosity_error()
    yield
    ours.set_verbosity(before[0]), theirs.set_verbosity(before[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str, str]:
    """(run folder, stdout, stderr) of a short run with --json."""
    root = tmp_path_factory.mktemp("json")
    out, two = root / "run", pictures(root / "photos", [(64, 64)] * 2)
    done = ran(
        "train",
        "pocket-product",
        "--out",
        out,
        "--json",
        *RUN,
        "--set",
        f"data.path={two}",
        "--set",
        "data.trigger=sks",
        "--set",
        "data.class_word=thing",
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


@pytest.mark.whole
def test_train_prints_every_event_as_a_json_line_and_nothing_else(trained):
    out, stdout, stderr = trained
    events = [json.loads(line) for line in stdout.splitlines()]
    assert not stderr and [e["step"] for e in events if e["event"] == "stepped"] == [1, 2]
    kept = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == [e["event"] for e in kept]
    assert events[-1]["event"] == "finished" and Path(events[-1]["path"]).is_file()


@pytest.mark.whole
def test_every_command_that_reports_prints_one_json_document_and_nothing_else(trained, tmp_path, capsys, hushed):
    file = trained[0] / "adapter" / "run.safetensors"
    commands = [
        ("check", "example:product"), ("prepare", "example:product", "--out", tmp_path / "data"),
        ("recipes", "list"), ("recipes", "show", "pocket-style"), ("plan", "pocket-style"), ("doctor",),
        ("cache", "info", "--root", tmp_path), ("inspect", file), ("verify", file),
        ("export", "--from", file, "--out", tmp_path / "b.safetensors", "--layout", "diffusers"),
        ("sample", "--base", "pocket", "--prompt", "a cup", "--steps", "1", "--out", tmp_path / "pictures"),
    ]  # fmt: skip
    for n, command in enumerate(commands):
        code, out, err = said(capsys, *(("--json", *command) if n % 2 else (*command, "--json")))
        assert code == 0 and not err, (command, err)
        assert json.loads(out), command
    pictures = json.loads(out)
    assert Path(pictures["pictures"][0]["path"]).is_file() and Path(pictures["grid"]).is_file()


@pytest.mark.whole
def test_quiet_commands_print_the_one_line_that_says_what_came_out(tmp_path, capsys, hushed):
    run, file = tmp_path / "run", tmp_path / "run" / "adapter" / "run.safetensors"
    for command, last in {
        ("train", "pocket-product", "--out", run, *RUN): str(file),
        ("check", "example:product"): r"seen 6 = used 6 \+ rejected 0",
        ("prepare", "example:product", "--out", tmp_path / "data"): f"wrote {tmp_path / 'data'}: 6 images",
        ("plan", "pocket-style"): r"fits: about [\d.]+ MiB needed, [\d.]+ GiB free on .*",
        ("verify", file): "verified",
        ("doctor",): "this machine can train",
        (
            "sample",
            "--base",
            "pocket",
            "--prompt",
            "a cup",
            "--steps",
            "1",
            "--out",
            tmp_path / "p",
        ): "1 picture in .*",
    }.items():
        code, out, err = said(capsys, "--quiet", *command)
        assert code == 0 and not err and re.fullmatch(last, out.rstrip("\n")), (command, out, err)


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_list_names_each_with_a_sentence_and_the_same_as_json(capsys):
    code, out, _ = said(capsys, "recipes", "list")
    names = sorted(p.stem for p in shipped.RECIPES.glob("*.toml"))
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == names
    assert max(map(len, out.splitlines())) <= 120
    rows = json.loads(said(capsys, "recipes", "list", "--json")[1])
    assert [row["name"] for row in rows] == names and {"name", "gpu_gb", "about"} == set(rows[0])
    assert {row["gpu_gb"] for row in rows} >= {None, 8, 12, 16, 24} and "flux-product-16gb" in names
    assert all(f" {row['gpu_gb'] or '-'} " in line for row, line in zip(rows, out.splitlines(), strict=True))
    assert all(re.fullmatch(r"[A-Z].{30,}\.", row["about"]) for row in rows)


def test_recipes_show_prints_one_whole_recipe_and_a_whole_file_byte_for_byte(capsys):
    _, out, _ = said(capsys, "recipes", "show", "sd15-product")
    assert tomllib.loads(out)["train"]["steps"] == 1000 and "extends" not in out and "a photo of a {class_word}" in out
    _, out, _ = said(capsys, "recipes", "show", "pocket-style")
    assert out == (shipped.RECIPES / "pocket-style.toml").read_text(encoding="utf-8")
    code, _, err = said(capsys, "recipes", "show", "sd15-prodct")
    assert code == 2 and err.endswith("try: did you mean sd15-product?\n")


def test_recipes_copy_writes_where_it_is_told_and_overwrites_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = said(capsys, "recipes", "show", "sd15-style")[1].encode()
    assert said(capsys, "recipes", "copy", "sd15-style")[0] == 0
    assert Path("sd15-style.toml").read_bytes() == shown
    Path("folder").mkdir()
    for to, made in (("mine.toml", "mine.toml"), ("folder", "folder/sd15-style.toml")):
        code, out, _ = said(capsys, "recipes", "copy", "sd15-style", to)
        assert code == 0 and f"finetune plan {made}" in out and Path(made).read_bytes() == shown
    Path("mine.toml").write_text("precious")
    code, _, err = said(capsys, "recipes", "copy", "sd15-style", "mine.toml")
    assert code == 2 and "mine.toml exists" in err and Path("mine.toml").read_text() == "precious"
    code, _, err = said(capsys, "recipes", "copy", "sd15-style", "nowhere/mine.toml")
    assert code == 2 and "cannot write nowhere" in err and "try:" in err


# --- check and cache -------------------------------------------------------------------------------------------------


def test_check_shows_a_good_dataset_and_exits_0(capsys):
    code, out, err = said(capsys, "check", "example:product", "--base", "pocket")
    assert code == 0 and not err and "seen 6 = used 6 + rejected 0" in out and "64x64" in out
    rows = json.loads(said(capsys, "check", "example:product", "--json")[1])
    assert rows["seen"] == rows["used"] == 6 and rows["rejected"] == []


def test_check_exits_2_when_something_is_unexplained(capsys, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    code, _, err = said(capsys, "check", tmp_path)
    assert code == 2 and err.startswith("error: ") and "try: " in err
    code, _, err = said(capsys, "check", tmp_path / "none")
    assert code == 2 and "no folder" in err


def test_cache_info_and_clear_count_and_remove_only_their_own(capsys, tmp_path):
    entry = tmp_path / "v1" / "image" / "ab" / f"ab{62 * '0'}.safetensors"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"0" * 100)
    (tmp_path / "photo.png").write_bytes(b"mine")
    assert "1 images, 0 captions" in said(capsys, "cache", "info", "--root", tmp_path)[1]
    assert said(capsys, "cache", "clear", "--root", tmp_path)[0] == 0
    assert "0 images, 0 captions, 0 datasets checked, 0.0 MiB" in said(capsys, "cache", "info", "--root", tmp_path)[1]
    assert (tmp_path / "photo.png").read_bytes() == b"mine"
