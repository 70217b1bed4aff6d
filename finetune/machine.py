"""Where a run computes: device, ranks, precision; by Accelerate."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")
Autocast = Callable[[], AbstractContextManager[Any]]


class Format(NamedTuple):
    """A number format, under each name that it goes by."""

    short: str
    """of precisions"""
    full: str
    """torch's, of files written; empty: none is written or computed in"""
    stored: str
    """in the header of a safetensors file"""
    dtype: torch.dtype


CPU = torch.device("cpu")
FORMATS = (
    Format("fp32", "float32", "F32", torch.float32),
    Format("bf16", "bfloat16", "BF16", torch.bfloat16),
    Format("fp16", "float16", "F16", torch.float16),
    Format("fp8 (e4m3)", "", "F8_E4M3", torch.float8_e4m3fn),
    Format("fp8 (e5m2)", "", "F8_E5M2", torch.float8_e5m2),
)
DTYPES = {name: one.dtype for one in FORMATS if one.full for name in (one.short, one.full, one.stored)}
"""by any of its names"""
STORED = {one.stored: one.short for one in FORMATS}


def has_gpu() -> bool:
    return torch.cuda.is_available()


def current_device() -> torch.device:
    """This process's GPU, where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """Who else trains; alone, summing is the identity."""

    rank: int = 0
    world_size: int = 1

    def rotated(self, items: Sequence[_Item]) -> list[_Item]:
        """From another place on for each rank: each makes its own share first, then finds the others' made."""
        start = len(items) * self.rank // self.world_size
        return [*items[start:], *items[:start]]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the ranks, in place, in one message."""
        if self.world_size == 1:
            return
        flat = torch.cat([t.reshape(-1).float() for t in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


class Device(NamedTuple):
    """Where the run computes."""

    device: torch.device
    ranks: Ranks
    autocast: Autocast
    scaler: torch.amp.GradScaler | None


def open_machine(precision: str) -> Device:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # a second run in this process may differ
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    accelerator = Accelerator(mixed_precision=mixed, cpu=not has_gpu())
    ranks = Ranks(accelerator.process_index, accelerator.num_processes)
    return Device(accelerator.device, ranks, accelerator.autocast, accelerator.scaler)
