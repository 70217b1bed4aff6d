"""Where a run computes: device, ranks, precision; by Accelerate."""

from typing import NamedTuple

import torch

from finetune.training.loop import Autocast, Ranks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
