"""A frozen denoiser in 4 bits, by bitsandbytes: nf4 with scales that are quantised themselves (arXiv:2305.14314).

Only the linear layers inside of repeated blocks: embeddings and the last layer are small, and their errors spread.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finetune import tensors as weights
from finetune.families.blocks import block_names

_BLOCK = 64
"""weights that share a scale"""
_OUTER = 256
"""scales that share one of their own"""
_TABLES = 4 * (16 + 256 + 1)
"""bytes: the values of nf4 and of 8-bit scales, and the scales' mean"""


def layers(module: nn.Module, blocks: Iterable[str]) -> dict[str, nn.Linear]:
    """Those that are held in 4 bits, by name; blocks: as a family's."""
    inside = [f"{name}." for name in block_names(module, blocks)]
    linear = {name: layer for name, layer in module.named_modules() if type(layer) is nn.Linear}
    return {name: layer for name, layer in linear.items() if name.startswith(tuple(inside))}


def weight_bytes(module: nn.Module, element: int, blocks: Iterable[str]) -> int:
    """Of a module whose other weights take `element` bytes each."""
    held = [layer.weight.numel() for layer in layers(module, blocks).values()]
    whole = sum(p.numel() for p in module.parameters())
    scales = [-(-n // _BLOCK) for n in held]
    packed = sum(-(-n // 2) for n in held) + sum(scales) + sum(4 * -(-n // _OUTER) for n in scales)
    return (whole - sum(held)) * element + packed + _TABLES * len(held)


def quantise(module: nn.Module, device: torch.device, blocks: Iterable[str]) -> None:
    """Round the layers' weights, one after the other, and move all of the module to the device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    found = layers(module, blocks)
    # how they are rounded may depend on the device in the last bit; what they were does not
    module.unrounded = weights.fingerprint(module.state_dict())  # type: ignore[assignment]
    for name, layer in found.items():
        how = {"quant_type": "nf4", "compress_statistics": True}
        made = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype, device="meta", **how
        )
        made.weight = Params4bit(layer.weight.data, requires_grad=False, module=made, **how)
        made.bias = layer.bias
        made.never_read = getattr(layer, "never_read", False)
        module.set_submodule(name, made.to(device))
    module.to(device)
    keep_packing(module)
    module.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks


def dense(weight: Tensor) -> Tensor:
    """A weight as it is computed with, packed in 4 bits or not."""
    packed: Any = weight
    if getattr(packed, "quant_state", None) is None:
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    made: Tensor = dequantize_4bit(packed.data, packed.quant_state)
    return made


def write_out(module: nn.Module) -> None:
    """Hold a module in float32 on the CPU, with the values it computed with: layers in 4 bits become ordinary ones."""
    linear = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    packed = [(n, m) for n, m in linear if getattr(m.weight, "quant_state", None) is not None]
    for name, layer in packed:
        weight = dense(layer.weight).float().cpu()
        whole = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, device="meta")
        whole.weight, whole.bias = nn.Parameter(weight, requires_grad=False), layer.bias
        module.set_submodule(name, whole)
    module.is_loaded_in_4bit = False  # type: ignore[assignment]  # diffusers would not let it be moved
    nn.Module.to(module, torch.device("cpu"), torch.float32)


def keep_packing(module: nn.Module) -> None:
    """Break two habits of 4-bit layers: on a CPU, evaluation packs their weights another way, which rounds the scales
    for good; and layer and weight hold each other, so that their memory is not free when they are let go."""
    layers: Iterable[Any] = module.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
            layer.weight.module = None
