"""The repeated blocks of a denoiser: what is quantised, recomputed, compiled, sharded or moved one after the other."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn


def block_names(module: nn.Module, blocks: Iterable[str]) -> list[str]:
    """Names of a denoiser's blocks, in the order in which they are run; blocks: a family's patterns."""
    names = [name for name, _ in module.named_modules()]
    return [n for p in blocks for n in names if n.count(".") == p.count(".") and fnmatchcase(n, p)]
