"""Losses between a prediction and its target."""

from torch import Tensor


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over each sample, in float32: (b, ...) -> (b,)."""
    return (output.float() - target.float()).square().flatten(1).mean(1)
