"""PEFT's LoRA layers with a shorter forward pass, the same to the last bit: saving, merging, disabling are PEFT's own.

PEFT multiplies a projection's whole output by a scale that is usually 1, and autograd its gradient again; it casts the
input to float32, which autocast casts back. On a small denoiser that is 2 to 5 % of a step (docs/performance.md).
"""

import math
from typing import Any

import torch
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn


class _Short(nn.Module):
    """Of a layer with one adapter, without dropout and of no other method than LoRA; all else is left to PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self
        name = None if args or kwargs else _only_adapter(layer)
        if name is None or not _computed_alike(x, layer.lora_A[name].weight):
            whole: Tensor = super().forward(x, *args, **kwargs)
            return whole
        down, up, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
        result: Tensor = layer.base_layer(x)
        if scale == 1:
            change = up(down(x))
        elif math.frexp(scale)[0] == 0.5:  # a power of two: it rounds nothing, wherever it stands
            change = up(down(x) * scale)
        else:
            change = up(down(x)) * scale
        summed: Tensor = (result + change).to(result.dtype)
        return summed


class ShortLinear(_Short, Linear):  # type: ignore[misc]  # PEFT is untyped
    pass


class ShortConv2d(_Short, Conv2d):  # type: ignore[misc]
    pass


_SHORT = {Linear: ShortLinear, Conv2d: ShortConv2d}


def shorten(layer: Any) -> None:
    """Give one of PEFT's layers the shorter pass; those for weights in few bits keep theirs."""
    layer.__class__ = _SHORT.get(type(layer), type(layer))


def _only_adapter(layer: Any) -> str | None:
    if layer.disable_adapters or layer.merged or layer.lora_variant or len(layer.active_adapters) != 1:
        return None
    name: str = layer.active_adapters[0]
    return name if name in layer.lora_A and isinstance(layer.lora_dropout[name], nn.Identity) else None


def _computed_alike(x: Tensor, weight: Tensor) -> bool:
    """Autocast, which the meta device does not know, brings both to one dtype itself."""
    return x.dtype == weight.dtype or (not x.is_meta and torch.is_autocast_enabled(x.device.type))
