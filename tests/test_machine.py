"""Number formats and the device are said in one place."""

import ast
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

import finetune
from finetune import tensors as weights
from finetune.machine import DTYPES, FORMATS, STORED, current_device
from finetune.proof.export import Dtype
from finetune.recipe import Export, Train


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.short)
def test_each_format_has_the_names_of_torch_and_of_files(one, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2).to(one.dtype)}, tmp_path / "x.safetensors")
    assert weights.read_header(tmp_path / "x.safetensors").dtypes == {"x": one.stored}
    assert STORED[one.stored] == one.short
    if one.full:
        assert getattr(torch, one.full) is one.dtype is DTYPES[one.short] is DTYPES[one.full] is DTYPES[one.stored]


def test_what_a_recipe_may_say_is_in_the_table() -> None:
    computed = {one.short for one in FORMATS if one.full}
    assert set(get_args(Train.model_fields["precision"].annotation)) == {"auto", *computed}
    assert set(get_args(Export.model_fields["dtype"].annotation)) == set(get_args(Dtype))
    assert set(get_args(Dtype)) == {one.full for one in FORMATS if one.full}


def test_one_file_asks_for_a_gpu_and_keeps_the_names_of_formats() -> None:
    names = {name for one in FORMATS for name in (one.full, one.stored) if name}
    asking, tables = set(), set()
    for path in Path(finetune.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = str(path.relative_to(Path(finetune.__file__).parent))
        asking |= {inside for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "is_available"}
        tables |= {inside for node in ast.walk(tree) if isinstance(node, ast.Dict)
                   for key in node.keys if isinstance(key, ast.Constant) and key.value in names}  # fmt: skip
    assert asking == {"machine.py"} and not tables
    assert current_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
