"""Full fine-tuning: the component's own weights are trained, and the product is a whole pipeline."""

from torch import nn


def attach(module: nn.Module) -> None:
    """All weights may change."""
    module.requires_grad_(True)
