"""Where a run computes: device, ranks, precision; by Accelerate."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Autocast = Callable[[], AbstractContextManager[Any]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Ranks:
    """Who else trains; alone, summing is the identity."""

    rank: int = 0
    world: int = 1

    def turned(self, items: Sequence[Item]) -> list[Item]:
        """From another place on for each rank: each makes its own share first, then finds the others' made."""
        start = len(items) * self.rank // self.world
        return [*items[start:], *items[:start]]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the ranks, in place, in one message."""
        if self.world == 1:
            return
        flat = torch.cat([t.reshape(-1).float() for t in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


class Machine(NamedTuple):
    """Where the run computes."""

    device: torch.device
    ranks: Ranks
    autocast: Autocast
    scaler: torch.amp.GradScaler | None


def open_machine(precision: str) -> Machine:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # a second run in this process may differ
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())
    ranks = Ranks(accelerator.process_index, accelerator.num_processes)
    return Machine(accelerator.device, ranks, accelerator.autocast, accelerator.scaler)
