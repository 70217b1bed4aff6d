"""Adapters under diffusers' names: one rank, scale 1, and no alpha, which needs nobody's metadata."""

import re

import torch
from torch import Tensor

from finetune.adapters.change import AdapterState, Change
from finetune.adapters.lora import Lora
from finetune.adapters.methods import METHODS
from finetune.errors import VerifyError

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def diffusers(modules: AdapterState, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors under diffusers' names; scale 1 needs neither alpha nor lora_adapter_metadata, which ComfyUI ignores.

    Raises:
        VerifyError: diffusers does not apply such an adapter as it was trained.
    """
    odd = next((n for n, c in modules.items() if not c.of_lora() and n.startswith("text_encoder")), None)
    if odd:
        raise VerifyError(
            f"{odd}: diffusers drops what {METHODS[modules[odd].kind].TITLE} has beside LoRA in a text encoder",
            "use the PEFT folder, or the layout `merged`",
        )
    tensors: dict[str, Tensor] = {}
    for name, change in uniform(modules).items():
        tensors |= {f"{name}{ending}": cast(t, dtype, name) for ending, t in keyed(change, "diffusers").items()}
    return tensors


def keyed(change: Change, layout: str) -> dict[str, Tensor]:
    """ending of a key -> tensor, as files of a layout name them."""
    endings = {role: ending for ending, role in reversed(list(METHODS[change.kind].KEYS[layout].items()))}
    return {endings[role]: tensor for role, tensor in change.tensors().items()}


def uniform(modules: AdapterState) -> AdapterState:
    """The same changes under one rank and scale 1, what every reader agrees on; up is float64, to be cast last.

    diffusers reads one alpha for the whole file (B1), diffusers < 0.36 one rank. Text encoders get zero changes where
    q, k, v or out lack one: diffusers raises or drops the rest without out_proj (B4), OpenCLIP readers without any.
    """
    rank = max(change.rank for change in modules.values())
    return {name: change.padded(rank) for name, change in sorted((modules | completion(modules)).items())}


def completion(modules: AdapterState) -> AdapterState:
    """Zero changes for the attention projections that a touched text encoder layer lacks."""
    layers: dict[str, int] = {}
    for name, change in modules.items():
        if found := re.fullmatch(
            r"(text_encoder(?:_\d+)?\.text_model\.encoder\.layers\.\d+)\.(self_attn\.\w+|mlp\.fc[12])", name
        ):
            # CLIP's projections are square: fc2 maps back to their width
            layers[found[1]] = change.shape[1] if found[2] == "mlp.fc1" else change.shape[0]
    wanted = ((f"{layer}.self_attn.{p}", width) for layer, width in layers.items() for p in _ATTENTION)
    zero = {name: Lora(torch.zeros(1, width), torch.zeros(width, 1), 1.0) for name, width in wanted}
    return {name: lora for name, lora in zero.items() if name not in modules}


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Raises VerifyError when the dtype cannot hold it."""
    found = tensor.to(dtype)
    if not bool(found.isfinite().all()):
        raise VerifyError(f"{name}: the change is not finite in {dtype}", "export it as float32")
    return found
