"""Adapter files as kohya's trainer writes them."""

import torch
from torch import Tensor

from finetune.adapters.change import AdapterState
from finetune.families.sd import StableDiffusion


def kohya_file(modules: AdapterState, prefix: str = "lora_te_") -> dict[str, Tensor]:
    """As kohya's trainer writes it: true ranks, true alphas."""
    tensors = {}
    for name, lora in modules.items():
        key = StableDiffusion.kohya_name(name).replace("lora_te_", prefix)
        tensors |= {f"{key}.lora_down.weight": lora.down, f"{key}.lora_up.weight": lora.up}
        tensors[f"{key}.alpha"] = torch.tensor(lora.scale * lora.rank)
    return tensors
