"""name -> optimizer. One is a table in `recipe.schema`, a file here that builds it and sizes its state, and a line."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from finetune import recipe
from finetune.optimizers import adafactor, adamw, adamw8bit
from finetune.optimizers.entry import Entry, Shape
from finetune.optimizers.schedules import SCHEDULES, factor, rates

__all__ = ["OPTIMIZERS", "SCHEDULES", "Entry", "Group", "build", "factor", "rates", "state_bytes"]
Group = tuple[str, list[nn.Parameter], float]
"""component, its parameters, its learning rate"""
OPTIMIZERS: dict[str, Entry[Any]] = {
    "adamw": adamw.ADAMW,
    "adamw8bit": adamw8bit.ADAMW8BIT,
    "adafactor": adafactor.ADAFACTOR,
}


def build(config: recipe.Optimizer, groups: Sequence[Group]) -> Optimizer:
    """An optimizer with one parameter group per component, named by it.

    Raises:
        RunError: the optimizer's package is not installed.
    """
    named = [{"params": parameters, "lr": rate, "name": name} for name, parameters, rate in groups]
    return OPTIMIZERS[config.name].build(named, config)


def state_bytes(config: recipe.Optimizer, shapes: Sequence[Shape]) -> int:
    """Exact bytes of optimizer state for parameters of these shapes, after the first step."""
    return OPTIMIZERS[config.name].state_bytes(config, shapes)
