"""The layouts that adapters are read and written in, each from the file that knows it."""

from typing import Literal

import torch
from torch import Tensor

from finetune import families
from finetune.adapters.change import AdapterState
from finetune.files.diffusers import diffusers, uniform
from finetune.files.kohya import universal
from finetune.files.names import possible_components
from finetune.files.peft import PEFT_CONFIG, PEFT_WEIGHTS, write_peft
from finetune.files.read import (
    ASSUMED,
    DIFFUSERS_CONFIG,
    MODULE_LIST,
    AdapterFile,
    adapter_files,
    adapter_in,
    expected,
    module_list,
    read_adapter,
)

__all__ = [
    "ASSUMED",
    "DIFFUSERS_CONFIG",
    "MODULE_LIST",
    "PEFT_CONFIG",
    "PEFT_WEIGHTS",
    "AdapterFile",
    "adapter_files",
    "adapter_in",
    "diffusers",
    "expected",
    "for_pipeline",
    "is_repairable",
    "main_layout",
    "module_list",
    "possible_components",
    "read_adapter",
    "uniform",
    "universal",
    "write_peft",
]  # fmt: skip


def main_layout(modules: AdapterState) -> Literal["universal", "diffusers"]:
    """The widest read one that holds these changes as they were trained."""
    return "universal" if all(change.of_lora() for change in modules.values()) else "diffusers"


def is_repairable(adapter: AdapterFile, family: str) -> bool:
    """Is it not yet in the layout that every reader of the family's adapters knows, and is there one for it?"""
    best = "universal" if families.family_class(family).layout == "kohya" else "diffusers"
    return adapter.layout != best and all(change.of_lora() for change in adapter.modules.values())


def for_pipeline(modules: AdapterState, dtype: torch.dtype, family: str) -> dict[str, Tensor]:
    """Tensors that stock diffusers loads. Raises VerifyError when there are none that it applies exactly."""
    plain = main_layout(modules) == "universal"
    return universal(modules, dtype, family) if plain else diffusers(modules, dtype)
