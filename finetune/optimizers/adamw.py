"""AdamW, arXiv:1711.05101: torch's, fused where the device has it."""

import math
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from finetune.optimizers.entry import Entry, Groups, Shape
from finetune.recipe import AdamW


def _build(groups: Groups, config: AdamW) -> Optimizer:
    device = groups[0]["params"][0].device.type
    return torch.optim.AdamW(
        groups, betas=(config.beta1, config.beta2), eps=config.epsilon, weight_decay=config.weight_decay,
        fused=device in ("cpu", "cuda", "mps"),
    )  # fmt: skip


def _state_bytes(config: AdamW, shapes: Sequence[Shape]) -> int:
    """Two float32 moments, and a float32 step count a parameter."""
    return sum(8 * math.prod(shape) + 4 for shape in shapes)


ADAMW = Entry(AdamW, _build, _state_bytes)
