"""Losses between a prediction and its target.

Shape legend: output and target are (b, c, ..., h, w); a mask is (b, h, w) in [0, 1], the share of a cell that counts.
"""

from torch import Tensor


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over each sample, in float32: (b, ...) -> (b,)."""
    return (output.float() - target.float()).square().flatten(1).mean(1)


def masked_error(output: Tensor, target: Tensor, mask: Tensor, outside: float = 0.0) -> Tensor:
    """`squared_error` where the mask is, and by the share `outside` where it is not; each sample is divided by what of
    its own mask counts, so that a small one weighs as much as a large one."""
    weight = outside + (1 - outside) * mask
    return (_cells(output, target) * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def error_outside(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error where the mask is not, as a mean over the whole of each sample: (b,), float32."""
    return (_cells(output, target) * (1 - mask)).flatten(1).mean(1)


def _cells(output: Tensor, target: Tensor) -> Tensor:
    """Means over channels and frames: (b, h, w), float32."""
    return (output.float() - target.float()).square().flatten(1, -3).mean(1)
