"""The loop. It computes; whoever iterates shows, samples or saves.

Sums over samples are divided by the number of samples in the whole step, so that accumulation, ranks and a short last
group weigh every sample alike.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from finetune import optimizers, recipe
from finetune.adapters.attach import Trainable
from finetune.diffusion import chance as draws
from finetune.errors import TrainError
from finetune.machine import Device
from finetune.ranks import whole
from finetune.recipe import Recipe
from finetune.training.batches import Batches, StepBatches
from finetune.training.gradients import Gradients

FEW_POSITIONS = 256
"""of latents, up to which attention written out beats the fused one on a CPU, whose backward pass is slow for few"""


@dataclass
class State:
    """All that changes while training. Saved whole, a run resumes bit for bit."""

    trainable: Trainable
    optimizer: Optimizer
    objective: nn.Module = field(default_factory=nn.Module)
    """batch -> losses, as Accelerate prepared it"""
    gradients: Gradients | None = None
    """of ranks that each have all weights"""
    scaler: torch.amp.GradScaler | None = None
    """for fp16"""
    step: int = 0
    bad_steps: int = 0
    """steps in a row that could not be taken, without those in which a loss scaler finds its scale"""
    ema: list[Tensor] | None = None
    """running mean of the parameters, in their order, with train.ema"""
    configs: dict[str, dict[str, object]] = field(default_factory=dict)
    """component -> its adapter_config.json, which holds ranks and alphas; empty in full fine-tuning"""

    @property
    def spread(self) -> bool:
        """Over the ranks: a rank has a part of each weight."""
        return hasattr(self.parameters[0], "full_tensor")

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for parameters in self.trainable.values() for p in parameters.values()]


class Step(NamedTuple):
    number: int
    loss: float
    prior_loss: float | None
    grad_norm: float
    rates: dict[str, float]
    seconds: float
    skipped: bool
    stop: bool
    """a rank was asked to stop before the ranks' gradients were summed: all of them know after the same step"""


def train(
    state: State, batches: Batches, config: Recipe, device: Device, asked: Callable[[], bool] = lambda: False
) -> Iterator[Step]:
    """Yield after each optimizer step, until `state.step` reaches train.steps. At a yield every step is whole, and the
    modules may be used. asked: whether this rank is to stop, which is told to all in `Step.stop`.

    Raises:
        PeerLost: another rank has ended; the last finished step is in the state.
        TrainError: loss or gradients were not finite for `train.patience` steps in a row.
    """
    assert config.train.steps is not None
    while state.step < config.train.steps:
        began = time.perf_counter()
        rates = _set_rates(state.optimizer, config.optimizer, state.step, config.train.steps)
        share = batches.step(state.step, device.ranks, device.shards)
        with attention_backend(share), device.ranks.answered() if device.shards else nullcontext():
            numbers = accumulate(state, share, config, device, asked)
            clipped = device.accelerator.clip_grad_norm_(state.parameters, config.optimizer.clip_norm or math.inf)
            # all that the host wants to know of a step, in one message: a GPU is waited for once
            loss, prior_loss, stop, norm = torch.cat([numbers, whole(clipped).reshape(1)]).tolist()
        finite = math.isfinite(loss + prior_loss)
        taken = _apply(state, finite, norm)
        state.step += 1
        if taken and state.ema is not None:
            update_ema(state.ema, state.parameters, config.train.ema, state.step)
        state.bad_steps = 0 if taken or (finite and _searches(state)) else state.bad_steps + 1
        kept = prior_loss if config.prior.mode != "off" else None
        yield Step(state.step, loss, kept, norm, rates, time.perf_counter() - began, not taken, stop > 0)
        if state.bad_steps >= config.train.patience:
            raise _diverged(state, finite)


def _searches(state: State) -> bool:
    """Of a skipped step: may the scale have been too high, which the scaler has lowered by now and tries again? There
    are many such steps at the start, and some later. From below 1 the gradients themselves do not fit into fp16. Only
    asked then, as a GPU must be waited for."""
    scaler = state.scaler
    return scaler is not None and scaler.get_scale() >= scaler.get_backoff_factor()


def _diverged(state: State, finite: bool) -> TrainError:
    said = f"for {state.bad_steps} steps in a row, until step {state.step}"
    if not finite:
        return TrainError(
            f"the loss was not finite {said}", "lower optimizer.learning_rate; with fp16, try train.precision = bf16"
        )
    if state.scaler is None:
        return TrainError(f"the gradients were not finite {said}", "lower optimizer.learning_rate")
    scale = state.scaler.get_scale()
    return TrainError(
        f"the gradients overflowed in fp16 {said}, however little the loss was scaled ({scale:.1e} now)",
        "train.precision = bf16, or fp32 where the GPU has no bf16",
    )


def attention_backend(share: StepBatches) -> AbstractContextManager[None]:
    """The faster way to compute attention, forward and backward, for batches of this size on this device."""
    latents = [batch.latents for pair in share.pairs for batch in pair if batch is not None]
    few = all(x.device.type == "cpu" and x[0, 0].numel() <= FEW_POSITIONS for x in latents)
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()


def accumulate(
    state: State, share: StepBatches, config: Recipe, device: Device, asked: Callable[[], bool] = lambda: False
) -> Tensor:
    """Add the step's gradients up, over batches and ranks. Returns the mean loss, the mean prior loss, and how many
    ranks are asked to stop: (3,), on the device."""
    ranks, accelerator = device.ranks, device.accelerator
    numbers = _cleared(state)
    times = ranks.world_size if device.shards else 1  # FSDP2 takes the mean of the ranks' gradients
    for i, (batch, prior) in enumerate(share.pairs):
        # adapter dropout draws from torch's own generator: make it a function of the step as well
        torch.manual_seed(draws.key(config.train.seed, "dropout", state.step, i * ranks.world_size + ranks.rank))
        with _held_back(state, share, i, device):
            losses, preserved = state.objective(batch)
            if prior is not None:
                preserved, _ = state.objective(prior)
            weight = 0.0 if i >= len(share.pairs) - share.idle else 1.0
            total = weight * losses.sum() / share.samples
            numbers[0] += total.detach()
            if preserved is not None:
                kept = weight * preserved.sum() / share.samples
                numbers[1] += kept.detach()
                total = total + config.prior.weight * kept
            accelerator.backward(total * times)
    if ranks.world_size > 1:
        numbers[2] += float(asked())
        ranks.sum(numbers if state.gradients is None else state.gradients.whole)
    return numbers


def _cleared(state: State) -> Tensor:
    """No gradients yet, and three numbers that are summed with them."""
    if state.gradients is not None:
        return state.gradients.begin()
    state.optimizer.zero_grad(set_to_none=True)
    return torch.zeros(3, device=state.parameters[0].device)


def _held_back(state: State, share: StepBatches, i: int, device: Device) -> AbstractContextManager[None]:
    """Of spread weights, gradients are sent with the last batch of a step."""
    last = i + 1 == len(share.pairs)
    return nullcontext() if last else device.accelerator.no_sync(state.objective)


@torch.no_grad()
def update_ema(ema: list[Tensor], parameters: Sequence[Tensor], decay: float, step: int) -> None:
    """Move the running mean towards the parameters after the step-th step (from 1); a young mean moves faster."""
    torch._foreach_lerp_(ema, list(parameters), 1 - min(decay, (1 + step) / (10 + step)))


@contextmanager
def ema_weights(state: State) -> Iterator[None]:
    """The running mean in the model, where there is one, inside the block."""
    _swap(state)
    try:
        yield
    finally:
        _swap(state)


@torch.no_grad()
def _swap(state: State) -> None:
    for parameter, mean in zip(state.parameters if state.ema else (), state.ema or (), strict=True):
        trained = parameter.clone()
        parameter.copy_(mean)  # into its place, which FSDP2 holds as well
        mean.copy_(trained)


def _set_rates(optimizer: Optimizer, config: recipe.Optimizer, step: int, steps: int) -> dict[str, float]:
    """Set each group's learning rate for this step, and say what it is."""
    factor = optimizers.factor(config, step, steps)
    peaks = optimizers.rates(config, [group["name"] for group in optimizer.param_groups])
    for group in optimizer.param_groups:
        group["lr"] = peaks[group["name"]] * factor
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}


def _apply(state: State, finite: bool, norm: float) -> bool:
    """Take the step, where its numbers are finite. Was it taken? Accelerate's `step_was_skipped` does not know of fused
    optimizers, which are called with the scaler's findings and skip by themselves."""
    if state.scaler or (finite and math.isfinite(norm)):
        state.optimizer.step()
        return math.isfinite(norm)
    return False
