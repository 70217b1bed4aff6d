"""One real step before the loop: does everything work together, how long does it take, how much memory?"""

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from finetune import optimizers
from finetune.adapters import attach as adapters
from finetune.adapters.methods import METHODS
from finetune.errors import TrainError
from finetune.families.base import Family, read
from finetune.machine import Autocast, Device, has_gpu
from finetune.ranks import ALONE, whole
from finetune.recipe import LowRank, Recipe
from finetune.shortage import out_of_memory
from finetune.training import levers
from finetune.training import loop as trainer
from finetune.training.batches import Batch, Batches, StepBatches
from finetune.training.loop import State

CLEARLY_FASTER = 1.5


class Measured(NamedTuple):
    seconds: float
    """of the second of two steps at the largest bucket, with as many threads"""
    peak_bytes: int
    """of the device's memory; on a CPU, of the whole process"""
    loss: float
    threads: int = 1
    """of the CPU, with which the run computes"""


def measure(state: State, batches: Batches, config: Recipe, device: Device) -> Measured:
    """Two steps at the largest bucket on copies of the weights, and where a CPU has several threads and nobody said how
    many to use, a third with one of them. The state is as before when it returns.

    Raises:
        TrainError: the loss is not finite, the adapter changes the base before any step, or a part gets no gradient.
        MemoryShortage: it does not fit.
    """
    kept = [p.detach().clone() for p in state.parameters]
    if has_gpu():
        torch.cuda.reset_peak_memory_stats()
    try:
        with out_of_memory("in one step at the largest bucket", lambda: levers.training(config)):
            share = batches.largest()
            if state.step == 0 and isinstance(config.adapter, LowRank) and config.adapter.init_from is None:
                _starts_as_the_base(batches.family, share.pairs[0][0], device.autocast)
            with trainer.attention_backend(share), device.unscaled():
                loss, took = _steps(state, config, share, device)
    finally:
        with torch.no_grad():
            for parameter, before in zip(state.parameters, kept, strict=True):
                parameter.copy_(before)
                parameter.grad = None
    threads = faster_threads(took)
    return Measured(took[threads], peak_bytes(), loss, threads)


def _steps(state: State, config: Recipe, share: StepBatches, device: Device) -> tuple[float, dict[int, float]]:
    """The loss of the first step, and the seconds of a later one by how many threads took it."""
    groups = [(c, list(p.values()), max(config.optimizer.learning_rate, 1e-4)) for c, p in state.trainable.items()]
    trial = State(state.trainable, optimizers.build(config.optimizer, groups), state.objective, step=state.step)
    alone = device._replace(ranks=ALONE)
    loss = float(trainer.accumulate(trial, share, config, alone)[0])
    if not torch.tensor(loss).isfinite():
        raise TrainError(
            f"the loss of the first step is {loss}",
            "train.precision = fp32 tells whether the base or the precision is at fault",
        )
    adapter = isinstance(config.adapter, LowRank)
    _reached(state, adapter, METHODS[config.adapter.method].STARTS_AT_ZERO if adapter and state.step == 0 else ("",))
    trial.optimizer.step()
    took, before = dict[int, float](), torch.get_num_threads()
    try:
        for threads in dict.fromkeys([before, 1] if state.step == 0 and chooses_threads(device) else [before]):
            torch.set_num_threads(threads)
            began = time.perf_counter()
            trainer.accumulate(trial, share, config, alone)
            _reached(state, adapter, ("",))
            trial.optimizer.step()
            took[threads] = time.perf_counter() - began
    finally:
        torch.set_num_threads(before)
    return loss, took


def faster_threads(took: Mapping[int, float]) -> int:
    """The number of threads to use, of number -> seconds; the first is what torch takes by itself, and stays unless
    another is clearly faster, so that runs of an idle machine are alike to the last bit."""
    usual = next(iter(took))
    fastest = min(took, key=lambda n: took[n])
    return fastest if CLEARLY_FASTER * took[fastest] < took[usual] else usual


def chooses_threads(device: Device) -> bool:
    """On a CPU that other programs use, two threads that wait for each other may take thirty times as long as one. A
    run that goes on keeps its number, as sums of floats depend on it, and the user's own word is not questioned."""
    return device.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ


def _starts_as_the_base(family: Family, batch: Batch, autocast: Autocast) -> None:
    with torch.no_grad(), autocast():
        with_it = _predict(family, batch)
        with adapters.disabled(family.parts.loaded()):
            without = _predict(family, batch)
    if not torch.equal(with_it, without):
        raise TrainError("the adapter changes the base before its first step", "please report this with your recipe")


def _predict(family: Family, batch: Batch) -> Tensor:
    return family.predict(batch.noise, batch.t, batch.given(read(family, batch.prompts, batch.text)))


def _reached(state: State, adapter: bool, only: tuple[str, ...]) -> None:
    """Every parameter has a gradient whose name holds one of these: lora_A has none while lora_B is zero."""
    for component, parameters in state.trainable.items():
        wanted = {n: p for n, p in parameters.items() if any(part in n for part in only)}
        dead = [n for n, p in wanted.items() if p.grad is None or not whole(p.grad).any()]
        if dead and (adapter or len(dead) == len(wanted)):
            raise TrainError(
                f"{component}: {len(dead)} of {len(wanted)} trained parts get no gradient, {dead[0]} first",
                "leave them out with adapter.targets",
            )


def peak_bytes() -> int:
    """The most memory that was held until now: of the GPU, where there is one, else of this process."""
    if has_gpu():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
