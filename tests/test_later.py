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
import bitsandbytes
assert bitsandbytes.nn.Linear4bit and not isinstance(sys.modules["bitsandbytes"], Later)
from peft.tuners.lora import model
assert model.is_bnb_available() and model.is_bnb_4bit_available(), "PEFT was told for good that it is not there"
"""


def test_a_base_and_an_adapter_do_without_bitsandbytes_until_it_is_asked_for():
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
