"""name -> optimizer, name -> learning-rate schedule. bitsandbytes is imported here and for weights in 4 bits."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from finetune import recipe
from finetune.errors import RunError

Group = tuple[str, list[nn.Parameter], float]
"""component, its parameters, its learning rate"""


def build(config: recipe.AdamW | recipe.AdamW8bit, groups: Sequence[Group]) -> Optimizer:
    """An optimizer with one parameter group per component, named by it.

    Raises:
        RunError: the optimizer's package is not installed.
    """
    return OPTIMIZERS[config.name](
        [{"params": parameters, "lr": rate, "name": name} for name, parameters, rate in groups],
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def rates(config: recipe.Optimizer, components: Sequence[str]) -> dict[str, float]:
    """component -> its peak learning rate."""
    text = config.text_encoder_learning_rate
    return {c: config.learning_rate if text is None or not c.startswith("text_encoder") else text for c in components}


def factor(config: recipe.Optimizer, step: int, steps: int) -> float:
    """What the learning rate is multiplied with at step (from 0) of steps: warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return SCHEDULES[config.schedule](done)


def state_bytes(name: str, numels: Sequence[int]) -> int:
    """Exact bytes of optimizer state for parameters of these sizes, after the first step."""
    return STATE_BYTES[name](numels)


def _adamw(groups: list[dict[str, Any]], **options: Any) -> Optimizer:
    device = groups[0]["params"][0].device.type
    return torch.optim.AdamW(groups, fused=device in ("cpu", "cuda", "mps"), **options)


def _adamw8bit(groups: list[dict[str, Any]], **options: Any) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as e:
        raise RunError(
            "optimizer.name = adamw8bit needs bitsandbytes, which is not installed",
            "pip install 'finetune-diffusion[bitsandbytes]', or --set optimizer.name=adamw",
        ) from e
    optimizer: Optimizer = AdamW8bit(groups, **options)
    return optimizer


def _adamw_bytes(numels: Sequence[int]) -> int:
    """Two float32 moments, and a float32 step count a parameter."""
    return sum(8 * n + 4 for n in numels)


def _adamw8bit_bytes(numels: Sequence[int]) -> int:
    """bitsandbytes keeps tensors under 4096 elements in float32; others in bytes, a float32 scale a block of 256.

    The two code tables of 256 floats are shared by all parameters.
    """
    small = sum(8 * n for n in numels if n < 4096)
    large = [2 * (n + 4 * -(-n // 256)) for n in numels if n >= 4096]
    return small + sum(large) + (2 * 4 * 256 if large else 0)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": _adamw, "adamw8bit": _adamw8bit}
STATE_BYTES: dict[str, Callable[[Sequence[int]], int]] = {"adamw": _adamw_bytes, "adamw8bit": _adamw8bit_bytes}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: max(0.0, 1.0 - done),
    "wsd": lambda done: min(1.0, max(0.0, 5 * (1.0 - done))),
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))),
}
