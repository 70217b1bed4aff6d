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


def small_adapter(seed: int, rank: int = 2) -> AdapterState:
    """A strong random change of some attention projections of both components."""
    chance = torch.Generator().manual_seed(seed)
    names = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v": (32, 32),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
        "text_encoder.text_model.encoder.layers.0.self_attn.v_proj": (32, 32),
    }
    made = {}
    for name, (out, width) in names.items():
        down, up = torch.randn(rank, width, generator=chance), torch.randn(out, rank, generator=chance)
        made[name] = Lora(down, up, 0.3)
    return made
