"""A recipe's steps in a process of its own: what `plan` says of their memory, and the peak, as a line of JSON.

`python tests/training/measured_steps.py RECIPE [small encoders|true encoders]`
"""

import ctypes
import json
import sys
from pathlib import Path

import torch

from finetune import recipe
from finetune.events import unheard
from finetune.families.base import Text
from finetune.planning import activations, footprint
from finetune.planning.plan import resolve_plan
from finetune.training import begin
from finetune.training import loop as trainer


def now(field: str) -> int:
    """Bytes of this process, by the kernel's name for them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def main(file: str, encoders: str) -> None:
    torch.set_num_threads(2)
    cuda = torch.cuda.is_available()
    plan = resolve_plan(recipe.load(Path(file)))
    told = sum(one.bytes for one in footprint.component_footprints(plan) if one.trainable)
    told += activations.activation_bytes(plan) or 0
    machine, family = begin.open_machine(plan.recipe.train.precision), begin.open_base(plan)
    made = unheard(begin.encode_dataset(plan, family, machine))
    family.parts.release(*family.encoders)
    if encoders == "small encoders":  # the denoiser reads what large ones would have given it
        tokens, width, pooled = plan.facts.text
        one = Text(torch.randn(1, tokens, width), torch.randn(1, pooled) if pooled else None)
        family.combine = lambda texts: one.each(lambda part: part.to(machine.device))  # type: ignore[method-assign]
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what encoding took
    before = now("VmRSS")
    state = begin.attach_adapter(plan, family, machine)
    for part in family.parts.loaded().values():
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.data.view(-1)[:1].clone()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    steps = list(trainer.train(state, made.batches, plan.recipe, machine))
    made.batches.close()
    peak = torch.cuda.max_memory_allocated() if cuda else now("VmHWM") - before
    seconds = sorted(s.seconds for s in steps)[len(steps) // 2]
    losses = [s.loss for s in steps]
    print(json.dumps({"told": told, "peak": peak, "seconds": seconds, "losses": losses}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
