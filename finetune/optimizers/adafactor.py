"""Adafactor, arXiv:1804.04235: torch's. Of a matrix it keeps one number a row and a column."""

import math
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from finetune.optimizers.entry import Entry, Groups, Shape
from finetune.recipe import Adafactor


def _build(groups: Groups, config: Adafactor) -> Optimizer:
    return torch.optim.Adafactor(
        groups, beta2_decay=config.beta2_decay, d=config.clip_threshold, weight_decay=config.weight_decay
    )


def _state_bytes(config: Adafactor, shapes: Sequence[Shape]) -> int:
    """float32: a step count; the variance of each row and column of the last two axes, of a vector its own."""
    return sum(4 + 4 * (n // s[-1] + n // s[-2] if len(s) > 1 else n) for s in shapes if (n := math.prod(s)))


ADAFACTOR = Entry(Adafactor, _build, _state_bytes)
