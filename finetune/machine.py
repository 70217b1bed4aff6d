"""Where a run computes: device, ranks, precision; by Accelerate."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.ranks import ALONE, Ranks, open_ranks, refuse_precision

if TYPE_CHECKING:
    from accelerate import Accelerator

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


def whole(tensor: Tensor) -> Tensor:
    """All of it, where it is spread over the ranks; all of them must ask."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def has_gpu() -> bool:
    return torch.cuda.is_available()


def current_device() -> torch.device:
    """This process's GPU, where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


class Device(NamedTuple):
    """Where the run computes."""

    device: torch.device
    ranks: Ranks
    accelerator: "Accelerator"
    shards: bool = False
    """the weights are spread over the ranks: whatever calls the model, all of them do"""

    @property
    def autocast(self) -> Autocast:
        found: Autocast = self.accelerator.autocast
        return found

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """With fp16."""
        found: torch.amp.GradScaler | None = self.accelerator.scaler
        return found

    @property
    def looks(self) -> Ranks:
        """Those who share what is only looked at: with spread weights, everyone makes all of it, at the same pace."""
        return ALONE if self.shards else self.ranks

    @contextmanager
    def unscaled(self) -> Iterator[None]:
        """Without the loss scale of fp16, inside the block."""
        scaler, self.accelerator.scaler = self.accelerator.scaler, None
        try:
            yield
        finally:
            self.accelerator.scaler = scaler

    def prepare(self, objective: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Both, as they are trained. Replicas are not wrapped: their gradients are summed in one buffer, whose order
        DistributedDataParallel would change after its first step, and after each resume."""
        if self.shards:
            wrapped, stepped = self.accelerator.prepare(objective, optimizer)
            return wrapped, stepped
        prepared = self.accelerator.prepare_model(objective, device_placement=False, evaluation_mode=True)
        return prepared, self.accelerator.prepare_optimizer(optimizer, device_placement=False)


def meet() -> Ranks:
    """The processes that train together, each on its GPU, where there is one.

    Raises:
        RunError: they do not find each other, or their launcher says what would be dropped.
    """
    return open_ranks(cpu=not has_gpu())


def open_machine(precision: str) -> Device:
    """Where this process computes, in the recipe's precision.

    Raises:
        RunError: as `meet`; the launcher was told another precision.
    """
    ranks = meet()
    refuse_precision(precision)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # a second run in this process may differ
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    accelerator = Accelerator(mixed_precision=mixed, cpu=not has_gpu())
    return Device(accelerator.device, ranks, accelerator)
