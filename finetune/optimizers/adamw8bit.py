"""AdamW whose moments are kept in 8 bits, arXiv:2110.02861: bitsandbytes'."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer

from finetune.errors import RunError
from finetune.optimizers.entry import Entry, Groups, Shape
from finetune.recipe import AdamW8bit


def _build(groups: Groups, config: AdamW8bit) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit as Theirs
    except ImportError as e:
        raise RunError(
            "optimizer.name = adamw8bit needs bitsandbytes, which is not installed",
            "pip install bitsandbytes, or set optimizer.name = adamw",
        ) from e
    optimizer: Optimizer = Theirs(
        groups, betas=(config.beta1, config.beta2), eps=config.epsilon, weight_decay=config.weight_decay
    )
    return optimizer


def _state_bytes(config: AdamW8bit, shapes: Sequence[Shape]) -> int:
    """bitsandbytes keeps tensors under 4096 elements in float32; others in bytes, a float32 scale a block of 256.

    The two code tables of 256 floats are shared by all parameters.
    """
    numels = [math.prod(shape) for shape in shapes]
    small = sum(8 * n for n in numels if n < 4096)
    large = [2 * (n + 4 * -(-n // 256)) for n in numels if n >= 4096]
    return small + sum(large) + (2 * 4 * 256 if large else 0)


ADAMW8BIT = Entry(AdamW8bit, _build, _state_bytes)
