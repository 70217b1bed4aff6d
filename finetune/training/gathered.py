"""Weights that are spread over ranks, brought together: for a while on each rank, or at the end on the first."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune import optimizers
from finetune.adapters import attach as adapters
from finetune.machine import CPU
from finetune.ranks import ALONE, whole
from finetune.training.begin import Run
from finetune.training.loop import State


@contextmanager
def gathered(run: Run) -> Iterator[None]:
    """Each rank has all weights inside the block, and calls the model by itself; all must enter. A GPU holds the model
    once then, without gradients and optimizer state."""
    if not run.device.shards:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    state, spread = run.state, run.state.trainable
    units = [module for module in state.objective.modules() if isinstance(module, FSDPModule)]
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        state.trainable = adapters.trained_in({name: run.family.parts[name] for name in spread})
        yield
    finally:
        state.trainable = spread
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def brought_home(run: Run) -> Run:
    """The run as one process would have it at its end: the base opened again, and what was trained in it, on the first
    rank. All must call; the others are done after."""
    if not run.device.shards:
        return run
    home = run.device._replace(shards=False, ranks=ALONE)
    found = (whole(p.detach()) for p in run.state.parameters)
    values = [value.to(CPU, copy=True) if run.folder.writes else value.new_empty(0) for value in found]
    parts, config = run.family.parts, run.plan.recipe
    names = adapters.component_names(config.adapter, run.family.denoiser_name)
    run.device.accelerator.free_memory()
    parts.release(run.family.denoiser_name, *names)
    if not run.folder.writes:
        return dataclasses.replace(run, device=home)
    trained = {name: parts[name] for name in names}
    trainable = adapters.attach(trained, run.family.presets, config.adapter, config.train.seed)
    with torch.no_grad():
        for value, parameter in zip(values, (p for some in trainable.values() for p in some.values()), strict=True):
            parameter.copy_(value)
    for name in {run.family.denoiser_name, *names}:
        parts[name].to(home.device)
    optimizer = optimizers.build(config.optimizer, [(c, list(p.values()), 0.0) for c, p in trainable.items()])
    return dataclasses.replace(run, device=home, state=State(trainable, optimizer, step=run.state.step))
