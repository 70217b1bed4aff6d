"""Where a run computes: device, ranks, precision; by Accelerate."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from finetune.ranks import Ranks, open_ranks, refuse_precision

if TYPE_CHECKING:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

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

    @contextmanager
    def unscaled(self) -> Iterator[None]:
        """Without the loss scale of fp16, inside the block."""
        scaler, self.accelerator.scaler = self.accelerator.scaler, None
        try:
            yield
        finally:
            self.accelerator.scaler = scaler

    def prepare(
        self, objective: nn.Module, optimizer: Optimizer, units: Iterable[str] = ()
    ) -> tuple[nn.Module, Optimizer]:
        """Both, as they are trained; units: classes of modules whose weights are gathered together, when they are
        called, where weights are spread. Replicas are not wrapped: their gradients are summed in one buffer, whose
        order DistributedDataParallel would change after its first step, and after each resume."""
        if not self.shards:
            prepared = self.accelerator.prepare_model(objective, device_placement=False, evaluation_mode=True)
            return prepared, self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(set(units))
        wrapped, stepped = self.accelerator.prepare(objective, optimizer)
        wrapped(None)  # the first call tells FSDP2 which module is the outermost; others may be called alone later
        return wrapped, stepped


def meet() -> Ranks:
    """The processes that train together, each on its GPU, where there is one.

    Raises:
        RunError: they do not find each other, or their launcher says what would be dropped.
    """
    return open_ranks(cpu=not has_gpu())


def open_machine(precision: str, shard: bool = False) -> Device:
    """Where this process computes, in the recipe's precision. shard: with weights that are spread over the ranks.

    Raises:
        RunError: as `meet`; the launcher was told another precision.
    """
    ranks = meet()
    refuse_precision(precision)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # a second run in this process may differ
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    if not shard:
        return Device((made := Accelerator(mixed_precision=mixed, cpu=not has_gpu())).device, ranks, made)
    plugin = _sharding()
    before = os.environ.get(_USE_FSDP)
    try:
        accelerator = Accelerator(mixed_precision=mixed, cpu=not has_gpu(), fsdp_plugin=plugin)
    finally:  # Accelerate sets it, for a plugin that is given as for one that a launcher asks for
        os.environ.pop(_USE_FSDP) if before is None else os.environ.update({_USE_FSDP: before})
    if not has_gpu():  # which it takes no plugin for, though all of it works by gloo
        from accelerate.utils import DistributedType

        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return Device(accelerator.device, ranks, accelerator, shards=True)


_USE_FSDP = "ACCELERATE_USE_FSDP"


def _sharding() -> "FullyShardedDataParallelPlugin":
    """FSDP2 by classes of modules. Its mixed precision stays off: autocast does it, as without sharding, and gradients
    are summed in the weights' own float32."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=True, auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(), cpu_ram_efficient_loading=False,
    )  # fmt: skip
