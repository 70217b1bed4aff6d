"""An adapter in memory: what it changes in each module, and how modules are named.

Shapes: r rank, k kernel. Linear: down (r, in), up (out, r); convolution: down (r, in, k, k), up (out, r, 1, 1).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Lora(NamedTuple):
    """One module's change: scale * up @ down, float32."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


Modules = dict[str, Lora]
"""canonical module name -> its change. A name is the component, a dot and the module's path in diffusers' own naming; a
text encoder's path always has its `text_model` level, which transformers >= 5.6 dropped but no reader did"""


def delta(lora: Lora) -> Tensor:
    """The dense change of the weight, (out, in) or (out, in, k, k), computed in float64, float32."""
    product = lora.up.double().flatten(1) @ lora.down.double().flatten(1)
    return (product * lora.scale).reshape(lora.up.shape[0], *lora.down.shape[1:]).float()


def less(lora: Lora, other: Lora) -> Lora:
    """The change without another one: of both ranks together."""
    up = torch.cat([lora.up * lora.scale, other.up * -other.scale], 1)
    return Lora(torch.cat([lora.down, other.down]), up, 1.0)


def norm(lora: Lora) -> float:
    """The Frobenius norm of the dense change, without making it: |UD|^2 = <U'U, DD'>."""
    up, down = lora.up.double().flatten(1), lora.down.double().flatten(1)
    return abs(lora.scale) * float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


def canonical_name(component: str, path: str) -> str:
    """The canonical name of a module at `path` inside a component in memory."""
    level = "text_model." if component.startswith("text_encoder") and not path.startswith("text_model.") else ""
    return f"{component}.{level}{path}"


def live_name(name: str, paths: Collection[str]) -> str:
    """The path, inside its component, of the module of that canonical name, given the component's module paths."""
    path = name.partition(".")[2]
    return path if path in paths else path.removeprefix("text_model.")


def sites(components: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """canonical name -> weight shape of every place in a base that can hold a change."""
    return {
        canonical_name(component, path): _shape(module)
        for component, whole in components.items()
        for path, module in whole.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _shape(module: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):  # whose weight may be packed in 4 bits
        return module.out_features, module.in_features
    return tuple(module.weight.shape)
