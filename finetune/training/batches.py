"""What one forward pass sees, put together from the schedule, its looks and the cache."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.data.images.buckets import SizeConditioning, size_conditioning
from finetune.encoding.images import PLACES, Crop
from finetune.encoding.masks import NO_MASKS, Masks
from finetune.encoding.text import Captions
from finetune.families.base import Conditioning, Family, Moments, Prompt, Text
from finetune.planning.plan import Plan
from finetune.planning.pools import Pool
from finetune.planning.schedule import Micro
from finetune.ranks import Ranks
from finetune.training.ahead import Ahead, Copies
from finetune.training.look import Look, look


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
    mask: Tensor | None = None
    """(b, h, w): the share of each cell of the latents that is learnt; None: all of every sample"""

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(prompt.caption for prompt in self.prompts)

    @property
    def preserve(self) -> tuple[str, ...]:
        return tuple(prompt.caption for prompt in self.preserve_prompts)

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        yield from (self.latents, self.noise, self.t, self.size, *self.control)
        if self.mask is not None:
            yield self.mask
        for text in (*self.text.values(), *self.preserve_text.values()):
            yield from (part for part in text if part is not None)

    def given(self, text: Text) -> Conditioning:
        """What the denoiser is told of these samples."""
        return Conditioning(text, self.size, self.control)


class StepBatches(NamedTuple):
    """One rank's share of a step: (batch, prior batch or None) pairs, and the samples of the whole step."""

    pairs: list[tuple[Batch, Batch | None]]
    samples: int
    idle: int = 0
    """of the pairs, the last ones, which weigh nothing: a rank computes along, as others wait for its weights"""

    def tensors(self) -> Iterator[Tensor]:
        return (tensor for pair in self.pairs for batch in pair if batch is not None for tensor in batch.tensors())


class Batches:
    """Makes the batches of any step, in any order; of steps in a row, the next ones ahead."""

    def __init__(
        self, plan: Plan, family: Family, latents: Mapping[tuple[str, Crop], Moments], texts: Captions,
        masks: Masks = NO_MASKS,
    ) -> None:  # fmt: skip
        self.plan, self.family, self.device = plan, family, texts.device
        self.latents, self.texts, self.masks = latents, texts, masks
        self._masked = [pool for pool in (plan.train, plan.prior) if pool and any(p.example.mask for p in pool.placed)]
        self._copies = Copies(self.device)
        self._ahead = dict[tuple[Ranks, bool], Ahead[StepBatches]]()

    def step(self, step: int, ranks: Ranks, even: bool = False) -> StepBatches:
        """One rank's batches of a step, from 0. even: as many for each rank.

        Raises:
            EntryLost: of the cache, while the run trained.
        """
        ahead = self._ahead.get((ranks, even))
        if ahead is None:
            ahead = self._ahead[ranks, even] = Ahead(partial(self._made, ranks=ranks, even=even), _size)
        share = ahead(step, self.plan.steps)
        self._copies.arrived(share.tensors())
        return share

    def close(self) -> None:
        """No thread is left that makes what comes next."""
        for ahead in self._ahead.values():
            ahead.close()

    def _made(self, step: int, ranks: Ranks, even: bool) -> StepBatches:
        with self._copies.aside():
            return self._share(step, ranks, even)

    def _share(self, step: int, ranks: Ranks, even: bool) -> StepBatches:
        plan, schedule = self.plan, self.plan.train.schedule
        first = step * schedule.micro_batches_per_step
        in_step = min(schedule.micro_batches_per_step, plan.micros - first)
        places = range(first + ranks.rank, first + in_step, ranks.world_size)
        idle = -(-in_step // ranks.world_size) - len(places) if even else 0
        micros = [*schedule.step(step, ranks.rank, plan.micros), *[schedule.micro_batch(first)] * idle]
        prior = [self.prior(m) if plan.prior else None for m in (*places, *[first] * idle)]
        pairs = list(zip([self.train(m) for m in micros], prior, strict=True))
        return StepBatches(pairs, in_step * schedule.batch, idle)

    def largest(self) -> StepBatches:
        """A whole step of the largest bucket, as one rank alone would take it."""
        plan, schedule = self.plan, self.plan.train.schedule
        areas = [plan.train.placed[samples[0]].bucket for samples in schedule.buckets]
        largest = max(range(len(areas)), key=lambda i: areas[i].width * areas[i].height)
        m = next(m for m in range(schedule.micros_per_epoch) if schedule.micro_batch(m).bucket == largest)
        pair = (self.train(schedule.micro_batch(m)), self.prior(m) if plan.prior else None)
        return StepBatches([pair] * schedule.accumulate, schedule.batch * schedule.accumulate)

    def train(self, micro: Micro) -> Batch:
        return self._batch(self.plan.train, micro)

    def prior(self, m: int) -> Batch:
        """The class images beside the m-th training batch."""
        assert self.plan.prior is not None
        return self._batch(self.plan.prior, self.plan.prior.schedule.micro_batch(m))

    def _batch(self, pool: Pool, micro: Micro) -> Batch:
        looks = [look(self.plan, pool.placed[view.sample], view.visit) for view in micro.views]
        chance, shown = [one.chance for one in looks], tuple(one.prompt for one in looks)
        moments = [self.latents[one.placed.example.name, one.crop] for one in looks]
        shape = tuple(moments[0].mean.shape)
        latents = self.family.latents(
            Moments(torch.stack([m.mean for m in moments]), torch.stack([m.logvar for m in moments])),
            torch.stack([d.latent_noise(shape) for d in chance]),
        )
        levels = torch.tensor([d.level for d in chance], dtype=torch.float64)
        preserved = tuple(one.preserved for one in looks if one.preserved is not None)
        return Batch(
            names=tuple(one.placed.example.name for one in looks),
            prompts=shown,
            latents=self._copies(latents),
            noise=self._copies(torch.stack([d.noise(shape) for d in chance])),
            t=self._copies(self.family.process.sample_timesteps(levels, math.prod(shape[1:]))),
            size=self._copies(torch.tensor([_conditioning(one) for one in looks])),
            control=tuple(map(self._copies, self._control(looks))),
            text=self._encoded(shown),
            preserve_prompts=preserved,
            preserve_text=self._encoded(preserved) if preserved else {},
            mask=self._mask(looks, shape) if pool in self._masked else None,
        )

    def _mask(self, looks: Sequence[Look], shape: Sequence[int]) -> Tensor | None:
        stacked = self.masks.stacked([(one.placed.example.name, one.crop) for one in looks], shape)
        return None if stacked is None else self._copies(stacked)

    def _encoded(self, prompts: Sequence[Prompt]) -> dict[str, Text]:
        return {encoder: text.each(self._copies) for encoder, text in self.texts.stacked(prompts).items()}

    def _control(self, looks: Sequence[Look]) -> list[Tensor]:
        """Latents of the control pictures, cut as the examples are: first ones in one batch, then the second."""
        shown = [[self.latents[c.name, one.crop].mean for c in one.placed.example.controls] for one in looks]
        means = [torch.stack(each) for each in zip(*shown, strict=True)]
        return [self.family.latents(Moments(m, torch.zeros_like(m)), torch.zeros_like(m)) for m in means]


def _size(share: StepBatches) -> int:
    return sum(tensor.nbytes for tensor in share.tensors())


def _conditioning(one: Look) -> SizeConditioning:
    return size_conditioning(one.placed.example.size, one.placed.bucket, PLACES[one.crop.place], one.crop.flip)
