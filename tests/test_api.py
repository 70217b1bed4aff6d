"""The public face: each name is there when asked for, documented, typed and quiet; the example does what it says."""

import inspect
import logging
import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
from support.command import ran

import finetune
from finetune import api
from finetune.errors import RecipeError
from finetune.silence import silence

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example.py"
HEAVY = ("torch", "diffusers", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "numpy", "PIL")


def test_importing_the_package_imports_no_library():
    done = ran(
        code="import sys; old = set(sys.modules); import finetune; dir(finetune)\n"
        "print({n.partition('.')[0] for n in set(sys.modules) - old} - sys.stdlib_module_names)"
    )
    assert (done.stdout.strip(), done.stderr) == ("{'finetune'}", "")


def test_naming_every_public_name_imports_nothing_heavy_and_says_nothing():
    done = ran(code="import sys, finetune; [getattr(finetune, name) for name in finetune.__all__]\n"
                    f"print([m for m in {HEAVY} if m in sys.modules])")  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("name", finetune.__all__)
def test_a_public_name_is_documented_typed_and_hides_no_package(name):
    thing, docs = getattr(finetune, name), (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert name in dir(finetune)
    if name == "__version__":
        assert thing.count(".") == 2
        return
    assert f"`{name}(" in docs or f"`finetune.{name}" in docs
    assert f"finetune.{name}" in EXAMPLE.read_text(encoding="utf-8") or name in ("load_recipe", "errors")
    assert (thing.__doc__ or "").strip() or name == "Recipe"
    packages = {path.stem for path in Path(finetune.__file__).parent.iterdir()}
    assert isinstance(thing, ModuleType) == (name in packages)
    if isinstance(thing, FunctionType):
        signature = inspect.signature(thing)
        assert all(p.annotation is not p.empty for p in signature.parameters.values()), name
        assert signature.return_annotation is not signature.empty
        assert "Raises" in (thing.__doc__ or ""), "what can go wrong"
        untold = [p for p in signature.parameters if p not in (thing.__doc__ or "") + docs]
        assert not untold, untold


def test_a_name_that_is_not_there_is_an_attribute_error():
    assert not hasattr(finetune, "evaluate_everything")


def test_types_travel_with_the_package():
    assert (Path(finetune.__file__).parent / "py.typed").is_file()
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert told["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["finetune"]


def test_a_recipe_is_a_path_a_shipped_name_or_built_in_python():
    data = {"path": "example:product"}
    built = finetune.plan(finetune.Recipe(base="pocket", data=data, train={"steps": 3}))
    assert built.steps == 3 and built.recipe.adapter.method == "lora"
    assert finetune.load_recipe("pocket-product", ["train.steps=7"]).train.steps == 7
    assert finetune.plan("pocket-product").steps == finetune.plan(finetune.load_recipe("pocket-product")).steps
    with pytest.raises(RecipeError, match=r"train\.stepz"):
        finetune.load_recipe("pocket-product", ["train.stepz=7"])


def test_an_old_name_in_a_recipe_is_a_warning_that_python_shows(tmp_path):
    file = tmp_path / "old.toml"
    file.write_text('base = "pocket"\ndata.path = "example:product"\nobjective.logit_deviation = 0.5\n')
    with pytest.warns(FutureWarning, match=r"is now called objective\.logit_std"):
        finetune.load_recipe(file)


def test_silence_keeps_warnings_and_log_lines_away_and_leaves_everything_as_it_was(caplog):
    filters, loggers = list(warnings.filters), [logging.getLogger(n) for n in ("diffusers", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    with silence():
        warnings.warn("unseen", stacklevel=1)
        for logger in loggers:
            logger.warning("unseen")
            logger.error("seen")
    assert caplog.messages.count("seen") >= 1 and "unseen" not in caplog.messages
    assert warnings.filters == filters and [logger.level for logger in loggers] == levels
    with pytest.raises(ZeroDivisionError), silence():
        raise ZeroDivisionError
    assert warnings.filters == filters and [logger.level for logger in loggers] == levels


MEANWHILE = "import finetune.silence as s\nwith s.silence():\n import {0}; assert L('{0}').getEffectiveLevel() == 40"


@pytest.mark.parametrize("said, level", [(None, 30), ("info", 20)])
def test_a_library_that_is_imported_in_silence_gets_its_own_level_afterwards(said, level):
    code = "import logging, os; L = logging.getLogger\n" + MEANWHILE.format("diffusers")
    code += f"\nassert L('diffusers').level == {level}; assert os.environ.get('DIFFUSERS_VERBOSITY') == {said!r}"
    env = {k: v for k, v in os.environ.items() if k != "DIFFUSERS_VERBOSITY"}
    env |= {"DIFFUSERS_VERBOSITY": said} if said else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_between_events_the_reader_has_settings_of_its_own_and_leaving_closes_the_run():
    closed = []

    def events():
        try:
            for n in range(3):
                warnings.warn("unseen", stacklevel=1)
                yield n
        finally:
            closed.append(True)

    filters = list(warnings.filters)
    stream = api._quietly(events)
    for event in stream:
        assert warnings.filters == filters
        if event == 1:
            break
    stream.close()
    assert closed and warnings.filters == filters


@pytest.mark.whole
def test_the_example_runs_as_it_stands_prints_nothing_and_changes_no_setting(tmp_path):
    code = f"""
import logging, os, runpy, warnings
import diffusers, transformers
transformers.utils.logging.enable_progress_bar()
logging.getLogger("diffusers").setLevel(logging.INFO)
names = ("", "accelerate", "bitsandbytes", "diffusers", "peft", "transformers")
def settings():
    loggers = [logging.getLogger(name) for name in names]
    return [(l.level, len(l.handlers)) for l in loggers], list(warnings.filters), \\
        transformers.utils.logging.is_progress_bar_enabled(), logging.root.manager.disable
before = settings()
made = runpy.run_path({str(EXAMPLE)!r})
assert settings() == before, (settings(), before)
assert len(made["losses"]) == 10 and all(loss > 0 for loss in made["losses"])
assert made["report"].ok and made["report"].live is not None and made["rank"] == {{"16": made["report"].hit}}
assert len(made["pictures"]) == 3 and all(one.path.is_file() for one in made["pictures"])
assert made["peft"].is_dir()
"""
    env = os.environ | {"FINETUNE_CACHE": str(tmp_path / "cache")}
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        env.pop(variable, None)
    program = [sys.executable, "-W", "ignore:::diffusers", "-c", code]
    done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run = tmp_path / "runs" / "mug"
    assert (run / "events.jsonl").read_text(encoding="utf-8").count('"event": "stepped"') == 10
    assert list(run.rglob("events.out.tfevents.*"))
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 45
