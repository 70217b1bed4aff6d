"""Learning rates: the peak of each component, and what it is multiplied with at each step."""

import math
from collections.abc import Callable, Sequence

from finetune import recipe

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: max(0.0, 1.0 - done),
    "wsd": lambda done: min(1.0, max(0.0, 5 * (1.0 - done))),
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))),
}
"""share of the steps that is done -> factor"""


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
