"""Random adapters, and the dense change that each means, by definition and not by any code of ours."""

import torch
from torch import Tensor

from finetune.adapters.change import AdapterState
from finetune.adapters.lora import Lora

Deltas = dict[str, Tensor]


def random_lora(shape: tuple[int, ...], rank: int, scale: float, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    up = (shape[0], rank) + (1, 1) * (len(shape) == 4)
    return Lora(torch.randn(rank, *shape[1:], generator=generator), torch.randn(*up, generator=generator) * 0.3, scale)


def dense(modules: AdapterState) -> Deltas:
    """The reference, from the definition, and not by any code of ours."""
    products = {n: m.scale * (m.up.double().flatten(1) @ m.down.double().flatten(1)) for n, m in modules.items()}
    return {n: p.reshape(modules[n].up.shape[0], *modules[n].down.shape[1:]) for n, p in products.items()}
