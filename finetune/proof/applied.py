"""A base with an adapter's changes in its weights, and how far two changes are apart.

Differences are relative: |a - b| / max(|a|, |b|), Frobenius norms, 0 when both are zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from finetune.adapters.change import AdapterState, Change, live_name
from finetune.families.base import Family
from finetune.families.quantised import dense

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""of a module's change, by the file's dtype; measured on fp16: 3.3e-4, on bf16: 2.8e-3"""


def difference(a: Tensor, b: Tensor) -> float:
    """As at the top of this file."""
    size = max(float(a.double().norm()), float(b.double().norm()))
    return float((a.double() - b.double()).norm()) / size if size else 0.0


@contextmanager
def applied(family: Family, modules: AdapterState) -> Iterator[None]:
    """The base with the dense changes added, inside the block; then bit for bit as it was."""
    kept = {}
    try:
        for name, change in modules.items():
            weight = weight_of(family, name)
            kept[name] = weight.data
            weight.data = weight.data + delta_of(family, name, change).reshape(weight.shape)
        yield
    finally:
        for name, data in kept.items():
            weight_of(family, name).data = data


def weight_of(family: Family, name: str) -> torch.nn.Parameter:
    """What a change of that canonical name is added to."""
    component = family.parts[name.partition(".")[0]]
    top = name.split(".")[1]  # all that live_name asks for: naming every module for each of them takes seconds
    paths = (name.partition(".")[2],) if hasattr(component, top) else ()
    return component.get_submodule(live_name(name, paths)).get_parameter("weight")


def base_weight(family: Family, name: str, change: Change) -> Tensor:
    """The base's weight that is changed, in the change's shape, float32; nothing where the change does not ask."""
    if change.of_lora():
        return torch.empty(0)
    return dense(weight_of(family, name)).float().cpu().reshape(change.shape)


def delta_of(family: Family, name: str, change: Change) -> Tensor:
    """The dense change of that weight."""
    return change.delta(base_weight(family, name, change))
