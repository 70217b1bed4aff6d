"""Components are the family's: of two denoisers, or one of another name, nothing is written that is not read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from support.adapters import random_lora

from finetune import families
from finetune import tensors as weights
from finetune.adapters.change import AdapterState
from finetune.adapters.lora import delta
from finetune.families.qwen_image import QwenImage
from finetune.families.sd import StableDiffusion
from finetune.files import layouts
from finetune.files.inspection import inspect

PATHS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_k")
ATTENTION = {"attention": ("to_q", "to_k")}


class TwoDenoisers(QwenImage):
    """High and low noise, as Wan 2.2 has them."""

    name = "two"
    presets: ClassVar = {"transformer": ATTENTION, "transformer_2": ATTENTION}


class Prior(QwenImage):
    """A denoiser of a name that no family of ours has."""

    name, denoiser_name = "priors", "prior"
    presets: ClassVar = {"prior": ATTENTION}


@pytest.fixture(autouse=True)
def plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (TwoDenoisers, Prior):
        monkeypatch.setitem(families.FAMILIES, kind.name, f"{__name__}:{kind.__name__}")


def adapter(*components: str) -> AdapterState:
    names = [f"{component}.{path}" for component in components for path in PATHS]
    return {name: random_lora((8, 8), 2, 0.5, i) for i, name in enumerate(names)}


def shapes(modules: AdapterState) -> dict[str, tuple[int, ...]]:
    return {name: (8, 8) for name in modules}


def as_peft(modules: AdapterState, out: Path, family: str) -> Path:
    layouts.write_peft(modules, out / "peft", {"format": "pt", "finetune.family": family})
    return out / "peft"


def as_file(modules: AdapterState, out: Path, family: str) -> Path:
    told = {"format": "pt", "finetune.family": family, layouts.MODULE_LIST: layouts.module_list(modules)}
    weights.write_tensors(layouts.universal(modules, torch.float32, family), out / "a.safetensors", told)
    return out / "a.safetensors"


@pytest.mark.parametrize("write", [as_peft, as_file])
@pytest.mark.parametrize(("family", "components"), [("two", ("transformer", "transformer_2")), ("priors", ("prior",))])
def test_every_component_of_the_family_is_read_back(
    family: str, components: tuple[str, ...], write: Callable[[AdapterState, Path, str], Path], tmp_path: Path
) -> None:
    modules = adapter(*components)
    where = write(modules, tmp_path, family)
    for names in (shapes(modules), None):  # with a base at hand, and by what the file says
        found = layouts.read_adapter(where, names, family if names else "")
        assert (found.problems, found.unused) == ((), ())
        assert found.modules.keys() == modules.keys()
        for name, lora in modules.items():
            torch.testing.assert_close(delta(found.modules[name]), delta(lora))
    assert inspect(where).components == dict.fromkeys(components, 2)


def test_a_files_own_list_names_every_component() -> None:
    modules = adapter("transformer", "transformer_2", "prior", "text_encoder_3")
    assert layouts.expected({layouts.MODULE_LIST: layouts.module_list(modules)}).keys() >= modules.keys()


@pytest.mark.parametrize("write", [as_peft, as_file])
@pytest.mark.parametrize("component", ["transformer_2", "prior", "text_encoder_3", "controlnet"])
def test_a_component_that_the_base_has_not_is_a_problem_with_its_name(
    component: str, write: Callable[[AdapterState, Path, str], Path], tmp_path: Path
) -> None:
    modules = adapter("transformer", component)
    where = write(modules, tmp_path, "qwen_image")
    base = {name: (8, 8) for name in adapter("transformer")}
    found = layouts.read_adapter(where, base, "qwen_image")
    assert found.modules.keys() == base.keys()
    named = [problem for problem in found.problems if component in problem or "base has no such module" in problem]
    assert named and any(component in problem for problem in named), found.problems
    assert len(found.unused) == 2 * len(PATHS)


def test_a_folder_of_an_unknown_component_is_a_problem_without_a_base(tmp_path: Path) -> None:
    where = as_peft(adapter("transformer", "transformer_2"), tmp_path, "qwen_image")
    found = layouts.read_adapter(where)
    assert found.problems == ("transformer_2: qwen_image has no such component, only transformer, text_encoder",)
    assert inspect(where).components == {"transformer": 2, "transformer_2": 2}


def test_of_two_denoisers_a_strangers_name_means_the_first(tmp_path: Path) -> None:
    modules = adapter("transformer", "transformer_2")
    tensors = {}
    for name in adapter("transformer"):
        stem = "lora_transformer_" + name.partition(".")[2].replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": modules[name].down, f"{stem}.lora_up.weight": modules[name].up}
    save_file(tensors, tmp_path / "b.safetensors")
    found = layouts.read_adapter(tmp_path / "b.safetensors", shapes(modules), "two")
    assert found.problems == () and found.modules.keys() == adapter("transformer").keys()


def test_a_text_encoder_that_no_adapter_changes_is_named(tmp_path: Path) -> None:
    """sd-scripts writes T5's changes into FLUX and SD 3 files; our families do not train it."""
    lora = random_lora((8, 8), 2, 1.0, 0)
    key = "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q"
    save_file({f"{key}.lora_A.weight": lora.down, f"{key}.lora_B.weight": lora.up}, tmp_path / "a.safetensors")
    found = layouts.read_adapter(
        tmp_path / "a.safetensors", {"transformer.transformer_blocks.0.attn.to_q": (8, 8)}, "sd3"
    )
    assert found.problems == (f"{key}: the base has no such module",) and not found.modules


def test_a_peft_directory_beside_its_own_checkpoints_is_read_alone(tmp_path: Path) -> None:
    layouts.write_peft(adapter("transformer"), tmp_path, {"finetune.family": "qwen_image"})
    for part in (layouts.PEFT_WEIGHTS, layouts.PEFT_CONFIG):
        (tmp_path / "transformer" / part).rename(tmp_path / part)
    later = tmp_path / "checkpoint-500"
    later.mkdir()
    (later / layouts.PEFT_CONFIG).write_text(json.dumps({"peft_type": "LOHA"}))
    found = layouts.read_adapter(tmp_path, {name: (8, 8) for name in adapter("transformer")}, "qwen_image")
    assert found.problems == () and len(found.modules) == len(PATHS)


def test_components_are_those_that_families_train() -> None:
    assert layouts.possible_components("two") == ("transformer", "transformer_2", *QwenImage.encoders)
    assert {"prior", "unet", "text_encoder_2", *StableDiffusion.presets} <= set(layouts.possible_components(""))
