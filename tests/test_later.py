"""A library that is put off is loaded when something of it is used, and is until then what it would be."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.command import answered, ran

from finetune import later


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that says when it is loaded."""
    folder = tmp_path / "put_off_here"
    folder.mkdir()
    (folder / "__init__.py").write_text("import sys\nsys.put_off_here = True\nanswer = 42\n")
    (folder / "part.py").write_text("from put_off_here import answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "put_off_here", False, raising=False)
    later.put_off("put_off_here")
    monkeypatch.setitem(sys.modules, "put_off_here", sys.modules["put_off_here"])
    monkeypatch.delitem(sys.modules, "put_off_here.part", raising=False)
    return "put_off_here"


def loaded() -> bool:
    return bool(sys.put_off_here)  # type: ignore[attr-defined]


def test_an_import_and_a_look_load_nothing(library):
    import put_off_here

    assert find_spec(library) is not None and put_off_here.__spec__.name == library and put_off_here.__file__
    assert not hasattr(put_off_here, "__wrapped__") and not loaded()


def test_the_first_use_loads_it_also_through_a_name_that_was_bound_before(library):
    import put_off_here

    assert put_off_here.answer == 42 and loaded()
    assert not isinstance(sys.modules[library], later.Later) and put_off_here.answer == 42


def test_a_module_inside_of_it_loads_it(library):
    from put_off_here.part import answer

    assert answer == 42 and loaded()


@pytest.fixture
def part(library, tmp_path) -> str:
    """A module of it with a function that may be imported by its name, and a module inside."""
    for name in ("put_off_here.tools", "put_off_here.tools.inner"):
        sys.modules.pop(name, None)
    tools = tmp_path / library / "tools"
    tools.mkdir()
    (tools / "__init__.py").write_text("import sys\nsys.put_off_tools += 1\ndef double(n): return 2 * n\ntaken = 3\n")
    (tools / "inner.py").write_text("depth = 2\n")
    sys.put_off_tools = 0  # type: ignore[attr-defined]
    later.put_off("put_off_here.tools", functions=["double"])
    return "put_off_here.tools"


def times_loaded() -> int:
    return int(sys.put_off_tools)  # type: ignore[attr-defined]


def test_a_function_is_imported_by_its_name_and_loads_its_module_when_it_is_called(part):
    from put_off_here.tools import double

    assert times_loaded() == 0
    assert double(21) == 42 and times_loaded() == 1 and double(1) == 2 and times_loaded() == 1


def test_another_name_of_that_module_loads_it(part):
    from put_off_here.tools import taken

    assert taken == 3 and times_loaded() == 1


def test_a_module_inside_of_that_module_is_found_and_loads_it_once(part):
    from put_off_here.tools import double
    from put_off_here.tools.inner import depth

    assert depth == 2 and times_loaded() == 1 and double(2) == 4


def test_what_is_missing_is_missing_still(library):
    import put_off_here

    with pytest.raises(AttributeError):
        _ = put_off_here.question


def test_one_that_is_there_or_not_installed_stays_as_it_is():
    before = sys.modules["json"]
    later.put_off("json")
    later.put_off("no_such_library_at_all")
    assert sys.modules["json"] is before and "no_such_library_at_all" not in sys.modules


ATTACHED = """
import sys
from finetune import families
family = families.family_class("sd")
family.PARTS["unet"].module_class()
from finetune.later import Later
assert isinstance(sys.modules["bitsandbytes"], Later), "loaded with diffusers"
from finetune.adapters import attach
from finetune.recipe import LoRA
facts = families.detect("pocket")
found = family.on_meta(families.locate("pocket"), facts)
attach.attach({"unet": found["unet"]}, family.presets, LoRA(rank=2, alpha=2.0, targets="attention"), seed=0)
assert isinstance(sys.modules["bitsandbytes"], Later), "loaded with PEFT, or by attaching"
for name in ("scipy.stats", "scipy.integrate", "scipy.optimize"):
    assert isinstance(sys.modules[name], Later), f"{name} was loaded"
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert [list(some) for some in linear_sum_assignment([[0, 1], [1, 0]])] == [[0, 1], [0, 1]]
import scipy.stats
assert scipy.stats.beta.ppf(0.5, 1, 1) == 0.5 and not isinstance(sys.modules["scipy.stats"], Later)
import bitsandbytes
assert bitsandbytes.nn.Linear4bit and not isinstance(sys.modules["bitsandbytes"], Later)
from peft.tuners.lora import model
assert model.is_bnb_available() and model.is_bnb_4bit_available(), "PEFT was told for good that it is not there"
"""


def test_a_base_and_an_adapter_do_without_bitsandbytes_and_scipy_until_they_are_asked_for():
    done = ran(code=ATTACHED)
    assert done.returncode == 0, done.stderr


def test_a_plan_that_was_counted_before_loads_no_library_to_count_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    first, again = (answered("plan", "pocket-product", "--json") for _ in range(2))
    heavy = {"diffusers", "transformers", "peft", "accelerate"}
    assert heavy <= first.modules and not heavy & again.modules
    assert not {"bitsandbytes", "torch._inductor.compile_fx"} & (first.modules | again.modules)
    told, kept = (json.loads(answer.stdout) for answer in (first, again))
    assert all(told[key] == kept[key] for key in ("settings", "base", "components", "activation_bytes", "notices"))
