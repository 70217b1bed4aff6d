"""The gradients of all that is trained, summed over the ranks in one message."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.ranks import Ranks


class Gradients:
    """One buffer that every gradient is a part of, kept from step to step: nothing is copied, and floats are always
    added in the same order, so that a run that is resumed computes what it would have computed."""

    def __init__(self, parameters: Sequence[nn.Parameter], also: int) -> None:
        """parameters: float32, on one device. also: how many numbers are summed with them."""
        sizes = [p.numel() for p in parameters]
        self.parameters = parameters
        self.whole = torch.zeros(sum(sizes) + also, device=parameters[0].device)
        *parts, numbers = torch.split(self.whole, [*sizes, also])
        self.numbers: Tensor = numbers
        self.parts = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def begin(self) -> Tensor:
        """Zero gradients, and zero numbers (also,), which are summed with them."""
        self.whole.zero_()
        for parameter, part in zip(self.parameters, self.parts, strict=True):
            parameter.grad = part
        return self.numbers

    def sum(self, ranks: Ranks) -> None:
        """Over all ranks, in place.

        Raises:
            PeerLost: another process has ended.
        """
        ranks.sum(self.whole)
