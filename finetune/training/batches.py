"""What one forward pass sees, put together from the schedule, the draws and the cache."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.data.buckets import size_conditioning
from finetune.data.captions import without_trigger
from finetune.data.example import Example
from finetune.diffusion import chance as draws
from finetune.encoding import cache
from finetune.encoding.cache import Captions, Crop
from finetune.families.base import Conditioning, Family, Moments, Prompt, Text, as_prompts
from finetune.machine import Ranks
from finetune.planning.plan import Plan
from finetune.planning.pools import Pool
from finetune.planning.schedule import Micro


class Batch(NamedTuple):
    """b samples of one bucket. The names travel with the tensors, so that no pair can be mixed up unseen."""

    names: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    """as shown to the model: the caption "" where dropped"""
    latents: Tensor
    """x0 (b, c, h, w), of videos (b, c, frames, h, w), float32"""
    noise: Tensor
    t: Tensor
    """times (b,) of the family's process"""
    size: Tensor
    """(b, 6), as `buckets.SizeConditioning`"""
    control: tuple[Tensor, ...]
    """latents of each sample's control pictures, like the sample's own"""
    text: Mapping[str, Text]
    """each frozen text encoder -> what it made of the captions; the trained ones encode them each time"""
    preserve_prompts: tuple[Prompt, ...]
    """without the trigger, for the base's own prediction; () when not asked for"""
    preserve_text: Mapping[str, Text]

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(prompt.caption for prompt in self.prompts)

    @property
    def preserve(self) -> tuple[str, ...]:
        return tuple(prompt.caption for prompt in self.preserve_prompts)

    def given(self, text: Text) -> Conditioning:
        """What the denoiser is told of these samples."""
        return Conditioning(text, self.size, self.control)


class StepBatches(NamedTuple):
    """One rank's share of a step: (batch, prior batch or None) pairs, and the samples of the whole step."""

    pairs: list[tuple[Batch, Batch | None]]
    samples: int


class Batches:
    """Makes the batches of any step, in any order."""

    def __init__(
        self, plan: Plan, family: Family, latents: Mapping[tuple[str, Crop], Moments], texts: Captions
    ) -> None:
        self.plan, self.family, self.device = plan, family, texts.device
        self.latents, self.texts = latents, texts

    def step(self, step: int, ranks: Ranks) -> StepBatches:
        """One rank's batches of a step, from 0."""
        plan, schedule = self.plan, self.plan.train.schedule
        micro_batches = schedule.step(step, ranks.rank, plan.micros)
        first = step * schedule.group
        in_step = min(schedule.group, plan.micros - first)
        places = range(first + ranks.rank, first + in_step, ranks.world)
        prior = [self.prior(m) if plan.prior else None for m in places]
        pairs = list(zip([self.train(m) for m in micro_batches], prior, strict=True))
        return StepBatches(pairs, in_step * schedule.batch)

    def largest(self) -> StepBatches:
        """A whole step of the largest bucket, as one rank alone would take it."""
        plan, schedule = self.plan, self.plan.train.schedule
        areas = [plan.train.placed[samples[0]].bucket for samples in schedule.buckets]
        largest = max(range(len(areas)), key=lambda i: areas[i].width * areas[i].height)
        m = next(m for m in range(schedule.micros_per_epoch) if schedule.micro(m).bucket == largest)
        pair = (self.train(schedule.micro(m)), self.prior(m) if plan.prior else None)
        return StepBatches([pair] * schedule.accumulate, schedule.batch * schedule.accumulate)

    def train(self, micro: Micro) -> Batch:
        return self._batch(self.plan.train, micro, self.plan.recipe.prior.mode == "own_prediction")

    def prior(self, m: int) -> Batch:
        """The class images beside the m-th training batch."""
        assert self.plan.prior is not None
        return self._batch(self.plan.prior, self.plan.prior.schedule.micro(m), False)

    def _batch(self, pool: Pool, micro: Micro, preserve: bool) -> Batch:
        data, seed = self.plan.recipe.data, self.plan.recipe.train.seed
        examples = [pool.placed[v.sample].example for v in micro.views]
        chance = [
            draws.draw(seed, e.name, v.visit, data.caption_dropout, data.flip)
            for e, v in zip(examples, micro.views, strict=True)
        ]
        random = data.crop == "random"
        crops = [Crop(int(d.place * len(cache.PLACES)) if random else cache.CENTER, d.flip) for d in chance]
        moments = [self.latents[e.name, c] for e, c in zip(examples, crops, strict=True)]
        shape = tuple(moments[0].mean.shape)
        levels = torch.tensor([d.level for d in chance], dtype=torch.float64)
        sizes = [
            size_conditioning(e.size, pool.placed[v.sample].bucket, cache.PLACES[c.place], c.flip)
            for e, v, c in zip(examples, micro.views, crops, strict=True)
        ]
        shown = tuple(Prompt.of(e, "" if d.drop_caption else None) for e, d in zip(examples, chance, strict=True))
        kept = tuple(_preserved(p, self.plan) for p in shown) if preserve else ()
        latents = self.family.latents(
            Moments(torch.stack([m.mean for m in moments]), torch.stack([m.logvar for m in moments])),
            torch.stack([d.latent_noise(shape) for d in chance]),
        )
        return Batch(
            names=tuple(e.name for e in examples),
            prompts=shown,
            latents=latents.to(self.device),
            noise=torch.stack([d.noise(shape) for d in chance]).to(self.device),
            t=self.family.process.drawn(levels, math.prod(shape[1:])).to(self.device),
            size=torch.tensor(sizes).to(self.device),
            control=tuple(one.to(self.device) for one in self._control(examples, crops)),
            text=self.texts.made(shown),
            preserve_prompts=kept,
            preserve_text=self.texts.made(kept) if kept else {},
        )

    def _control(self, examples: Sequence[Example], crops: Sequence[Crop]) -> list[Tensor]:
        """Latents of the control pictures, cut as the examples are: first ones in one batch, then the second."""
        shown = [[self.latents[c.name, crop].mean for c in e.controls] for e, crop in zip(examples, crops, strict=True)]
        means = [torch.stack(each) for each in zip(*shown, strict=True)]
        return [self.family.latents(Moments(m, torch.zeros_like(m)), torch.zeros_like(m)) for m in means]


def prompts(plan: Plan) -> list[Prompt]:
    """Every prompt that training or its samples may show, those without a caption included."""
    examples = [p.example for p in (*plan.train.placed, *plan.held_out, *(plan.prior.placed if plan.prior else ()))]
    shown = [Prompt.of(example) for example in examples]
    if plan.recipe.prior.mode == "own_prediction":
        shown += [_preserved(prompt, plan) for prompt in shown]
    empty = [Prompt(""), *(Prompt.of(example, "") for example in examples)]
    samples = as_prompts([*plan.recipe.sample.prompts, plan.recipe.sample.negative])
    return list({prompt.key: prompt for prompt in [*empty, *shown, *samples]}.values())


def _preserved(prompt: Prompt, plan: Plan) -> Prompt:
    data = plan.recipe.data
    return Prompt(without_trigger(prompt.caption, data.trigger, data.class_word), prompt.images)


def wanted(plan: Plan) -> list[cache.Wanted]:
    """Every (image, crop) training may show, control pictures included."""
    crops = cache.crops(plan.recipe.data.crop == "random", plan.recipe.data.flip)
    pools = [*plan.train.placed, *(plan.prior.placed if plan.prior else ())]
    held = [cache.Wanted(p.example, p.bucket, Crop(cache.CENTER, False)) for p in plan.held_out]
    own = [cache.Wanted(p.example, p.bucket, crop) for p in pools for crop in crops] + held
    return own + [w._replace(example=control) for w in own for control in w.example.controls]
