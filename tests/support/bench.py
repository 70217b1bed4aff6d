"""The bench that tests train on: a small base, a few pictures, and the run's own procedure up to its loop."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from finetune import recipe
from finetune.encoding.text import Captions
from finetune.evaluation import effect as evaluate
from finetune.families.base import Family
from finetune.machine import Device
from finetune.planning import plan as planning
from finetune.recipe import Loaded, Recipe
from finetune.training import loop as trainer
from finetune.training.batches import Batch, Batches
from finetune.training.begin import begin
from finetune.training.loop import State, Step

BOTH = ("denoiser", "text_encoder")


class Bench(NamedTuple):
    plan: planning.Plan
    family: Family
    state: State
    batches: Batches
    machine: Device
    latents: evaluate.Latents
    captions: Captions

    def train(self, until: int | None = None) -> list[Step]:
        return list(islice(self.steps(), until and until - self.state.step))

    def steps(self) -> Iterator[Step]:
        return trainer.train(self.state, self.batches, self.plan.recipe, self.machine)

    def step(self, k: int = 0) -> list[Batch]:
        """The batches of step k, the training ones."""
        return [batch for batch, _ in self.batches.step(k, self.machine.ranks).pairs]

    def gradients(self, k: int = 0) -> dict[str, Tensor]:
        """Of step k, at the weights as they are."""
        share = self.batches.step(k, self.machine.ranks)
        trainer.accumulate(self.state, share, self.plan.recipe, self.machine)
        return {n: p.grad.clone() for n, p in self.named().items() if p.grad is not None}

    def named(self) -> dict[str, torch.nn.Parameter]:
        return {f"{c}.{n}": p for c, parameters in self.state.trainable.items() for n, p in parameters.items()}

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.named().items()}

    def scale(self, by: float) -> torch.amp.GradScaler:
        """Train with a loss scaler from here on, as with fp16 on a GPU, here on a CPU and in float32."""
        accelerator: Any = self.machine.accelerator
        scaler = torch.amp.GradScaler("cpu", init_scale=by)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        self.state.scaler = accelerator.scaler = scaler
        accelerator._optimizers.clear()
        inner = cast(Any, self.state.optimizer).optimizer
        self.state.optimizer = accelerator.prepare_optimizer(inner, device_placement=False)
        return scaler

    def grow(self, size: float = 0.05) -> None:
        """Give every trained weight a value, as after long training."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in self.state.parameters:
                p.copy_(torch.randn(p.shape, generator=generator) * size)


def bench(base: str | Path, data: str | Path, world: int = 1, **changes: object) -> Bench:
    """The run's own procedure up to its loop; changes are recipe values: train__steps=3."""
    plan = settled(base, data, world, **changes)
    run = begin(plan)
    return Bench(run.plan, run.family, run.state, run.data.batches, run.device, run.data.latents, run.data.captions)


def settled(base: str | Path, data: str | Path, world: int = 1, **changes: object) -> planning.Plan:
    if "train__epochs" not in changes:
        changes = {"train__steps": 3} | changes
    # at 64 px the middle block of a tiny base attends to one token, and to_q learns nothing
    changes = {"data__resolution": 128, "data__max_aspect": 4.0} | changes
    few = {"adapter__targets": ("to_q", "to_v"), "adapter__text_encoder_targets": ("q_proj", "out_proj")}
    changes = few | {"data__caption_dropout": 0.0, "adapter__rank": 4} | changes
    wanted = Recipe.model_validate({"base": str(base), "data": {"path": str(data)}})
    return planning.resolve_plan(Loaded(recipe.replace(wanted, **changes), {}, Path("recipe.toml")), world)


def total(gradients: dict[str, Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients.values()]).norm())
