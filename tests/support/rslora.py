"""rsLoRA, scaled by alpha / sqrt(rank) (arXiv:2312.03732): an adapter method as somebody would add it, in one file."""

from collections.abc import Mapping
from typing import Any

from finetune.adapters.lora import of_layer, of_tensors, prepare, put

__all__ = ["KEYS", "PEFT", "ROLES", "STARTS_AT_ZERO", "TITLE", "has", "of_layer", "of_tensors", "prepare", "put"]

TITLE = "rsLoRA"
KEYS: Mapping[str, Mapping[str, str]] = {}  # in files it is a LoRA with another scale
ROLES: frozenset[str] = frozenset({"a LoRA's"})
STARTS_AT_ZERO: tuple[str, ...] = ("lora_B",)
PEFT: Mapping[str, Any] = {"use_rslora": True}


def has(layer: Any, adapter: str) -> bool:
    return adapter in layer.lora_A and layer.scaling[adapter] != layer.lora_alpha[adapter] / layer.r[adapter]
