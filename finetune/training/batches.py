"""What one forward pass sees, put together from the schedule, the draws and the cache."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.data import images
from finetune.data.captions import without_trigger
from finetune.diffusion import chance as draws
from finetune.encoding import cache
from finetune.encoding.cache import Captions, Crop
from finetune.families.base import Family, Moments, Text
from finetune.planning.plan import Plan
from finetune.planning.pools import Pool
from finetune.planning.schedule import Micro


class Batch(NamedTuple):
    """b samples of one bucket. The names travel with the tensors, so that no pair can be mixed up unseen."""

    names: tuple[str, ...]
    captions: tuple[str, ...]
    """as shown to the model: "" where dropped"""
    latents: Tensor
    """x0 (b, c, h, w), float32"""
    noise: Tensor
    t: Tensor
    """times (b,) of the family's process"""
    frames: Tensor
    """(b, 6), as `images.Frame`"""
    text: Mapping[str, Text]
    """each frozen text encoder -> what it made of the captions; the trained ones encode them each time"""
    preserve: tuple[str, ...]
    """captions without the trigger, for the base's own prediction; () when not asked for"""
    preserve_text: Mapping[str, Text]


class Batches:
    """Makes the batches of any step, in any order."""

    def __init__(
        self, plan: Plan, family: Family, latents: Mapping[tuple[str, Crop], Moments], texts: Captions
    ) -> None:
        self.plan, self.family, self.device = plan, family, texts.device
        self.latents, self.texts = latents, texts

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
        frames = [
            images.frame(e.size, pool.placed[v.sample].bucket, cache.PLACES[c.place], c.flip)
            for e, v, c in zip(examples, micro.views, crops, strict=True)
        ]
        captions = tuple("" if d.drop_caption else e.caption for e, d in zip(examples, chance, strict=True))
        kept = tuple(without_trigger(c, data.trigger, data.class_word) for c in captions) if preserve else ()
        latents = self.family.latents(
            Moments(torch.stack([m.mean for m in moments]), torch.stack([m.logvar for m in moments])),
            torch.stack([d.latent_noise(shape) for d in chance]),
        )
        return Batch(
            names=tuple(e.name for e in examples),
            captions=captions,
            latents=latents.to(self.device),
            noise=torch.stack([d.noise(shape) for d in chance]).to(self.device),
            t=self.family.process.drawn(levels, shape[-2] * shape[-1]).to(self.device),
            frames=torch.tensor(frames).to(self.device),
            text=self.texts.made(captions),
            preserve=kept,
            preserve_text=self.texts.made(kept) if kept else {},
        )


def captions(plan: Plan) -> list[str]:
    """Every caption that training or its samples may show, the empty one included."""
    shown = [p.example.caption for p in (*plan.train.placed, *plan.held_out)]
    shown += [p.example.caption for p in plan.prior.placed] if plan.prior else []
    if plan.recipe.prior.mode == "own_prediction":
        data = plan.recipe.data
        shown += [without_trigger(c, data.trigger, data.class_word) for c in shown]
    return list(dict.fromkeys(["", *shown, *plan.recipe.sample.prompts, plan.recipe.sample.negative]))


def wanted(plan: Plan) -> list[cache.Wanted]:
    """Every (image, crop) training may show."""
    crops = cache.crops(plan.recipe.data.crop == "random", plan.recipe.data.flip)
    pools = [*plan.train.placed, *(plan.prior.placed if plan.prior else ())]
    held = [cache.Wanted(p.example, p.bucket, Crop(cache.CENTER, False)) for p in plan.held_out]
    return [cache.Wanted(p.example, p.bucket, crop) for p in pools for crop in crops] + held
