"""Did it learn? Losses at fixed noise, the size of the change, and whether captions still matter."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.adapters import attach as adapters
from finetune.data.dataset import Placed
from finetune.data.example import Example
from finetune.data.images.buckets import size_conditioning
from finetune.diffusion import chance as draws
from finetune.diffusion.loss import masked_error, squared_error
from finetune.encoding.images import STRAIGHT, Crop
from finetune.encoding.masks import NO_MASKS, Masks
from finetune.encoding.text import Captions
from finetune.events import CaptionFit, TrainingEffect
from finetune.families.base import Conditioning, Moments, Prompt, Text, as_prompts, evaluation_mode
from finetune.machine import Autocast
from finetune.planning.plan import Plan
from finetune.ranks import ALONE, Ranks

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""shares of the noise path at which losses are taken"""
NO_EFFECT = 1e-6
"""relative change of weights or output below which an adapter does nothing"""

TRIED_IMAGES, TRIED_CAPTIONS = 12, 5
"""how many images are asked about, and against how many wrong captions each"""
FIT_LEVELS = (0.5, 0.7)
"""where on the noise path: they tell captions from mixed-up ones as well as four levels do (docs/log.md)"""
LITTLE_GAIN = 0.02
"""share of the base's loss on the training images below which training has hardly begun"""

AT_ONCE_PX = 24 * 64**2
"""px of the images of one batch, unless more are said to fit; a larger image is a batch of its own. On a CPU, 24 images
of 64 px are fastest."""

Latents = Mapping[tuple[str, Crop], Moments]


class Losses(NamedTuple):
    mean: float
    bands: dict[str, float]
    """level -> mean over images"""


class Judged(NamedTuple):
    """One prediction: of an image, with a caption, at a level."""

    placed: Placed
    prompt: Prompt
    level: float

    @property
    def key(self) -> tuple[str, str, float]:
        return self.placed.example.name, self.prompt.key, self.level


Errors = Mapping[tuple[str, str, float], float]
"""what was asked, by its key -> mean squared error"""


def at_once_px(plan: Plan) -> int:
    """px that fit into a batch without gradients: as many as a training batch has at its largest bucket, since the plan
    counts what such a batch keeps for its gradients, and without them it takes a part of that."""
    largest = max(one.bucket.width * one.bucket.height for one in plan.train.placed)
    return max(AT_ONCE_PX, plan.recipe.train.batch * largest)


def warnings(effect: TrainingEffect) -> list[str]:
    """What speaks against training having worked, each with the likely cause."""
    found = []
    if effect.gain < LITTLE_GAIN:
        found.append(
            f"the training images are predicted only {effect.gain:.1%} better than by the base: "
            "more train.steps, or another optimizer.learning_rate"
        )
    if effect.base_fit and effect.base_fit.share < 2 * effect.base_fit.chance:
        found.append(
            f"to the base, only {effect.base_fit.share:.0%} of the captions fit their own image best "
            f"({effect.base_fit.chance:.0%} would by chance): are they mixed up, or too vague?"
        )
    elif effect.base_fit and effect.adapted_fit and effect.adapted_fit.share < 0.5 * effect.base_fit.share:
        found.append("captions matter less than they did to the base: trained too long, or too fast?")
    return found


def losses(
    placed: Sequence[Placed], latents: Latents, captions: Captions, autocast: Autocast, shown: Sequence[str] = (),
    px: int = AT_ONCE_PX, ranks: Ranks = ALONE, masks: Masks = NO_MASKS,
) -> Losses:  # fmt: skip
    """Mean squared error at fixed levels and at noise that belongs to each image: the same whenever it is asked.

    shown: other captions than the images' own. px: of one batch, at most. ranks: those who share the images, and all
    ask the same.
    """
    shown = shown or [p.example.caption for p in placed]
    prompts = [Prompt.of(p.example, c) for p, c in zip(placed, shown, strict=True)]
    asked = _at_every_level(placed, prompts)
    own = errors(ranks.share(asked), latents, captions, autocast, px, masks)
    return _losses(asked, {key: error for found in ranks.gathered(own) for key, error in found.items()})


def measure_effect(
    moved: dict[str, float], placed: Sequence[Placed], latents: Latents, captions: Captions, autocast: Autocast,
    px: int = AT_ONCE_PX, masks: Masks = NO_MASKS,
) -> TrainingEffect:  # fmt: skip
    """On the first images of a fixed shuffle, adapter off and on.

    moved: component -> how far its weights moved, as `relative_change` measures it. px: of one batch, at most.
    """
    tried = [placed[i] for i in draws.permutation(len(placed), "learnt")[:TRIED_IMAGES]]
    own, rivals = _at_every_level(tried, [Prompt.of(p.example) for p in tried]), rivals_of(placed)
    others = [one for said in rivals for prompt in said for one in prompt]
    shown, shape = [Prompt.of(p.example) for p in placed], tuple(next(iter(latents.values())).mean.shape)

    def judged() -> tuple[float, CaptionFit | None]:
        """(loss where masks are, how captions fit whole images: they name what surrounds the product, too)"""
        found = errors([*own, *([] if masks.cells else others)], latents, captions, autocast, px, masks)
        whole = errors(others, latents, captions, autocast, px) if masks.cells else found
        return _losses(own, found).mean, _fit(rivals, whole)

    output = output_change(shown, shape, captions, autocast, px)
    with adapters.disabled(captions.family.parts.loaded()):
        before, base_fit = judged()
    after, adapted_fit = judged()
    return TrainingEffect(before, after, base_fit, adapted_fit, moved, output)


def _at_every_level(placed: Sequence[Placed], prompts: Sequence[Prompt]) -> list[Judged]:
    return [Judged(p, c, level) for level in LEVELS for p, c in zip(placed, prompts, strict=True)]


def _losses(asked: Sequence[Judged], errors: Errors) -> Losses:
    bands = {}
    for level in LEVELS:
        found = [errors[one.key] for one in asked if one.level == level]
        bands[str(level)] = sum(found) / len(found)
    return Losses(sum(bands.values()) / len(bands), bands)


def rivals_of(placed: Sequence[Placed]) -> list[list[list[Judged]]]:
    """For each image tried: its own caption, then a few of the others', at the same noise; nothing without two
    captions."""
    said = list({(prompt := Prompt.of(p.example)).key: prompt for p in placed}.values())
    if len(said) < 2:
        return []
    found = []
    for i in draws.permutation(len(placed), "learnt")[:TRIED_IMAGES]:
        own = Prompt.of(placed[i].example)
        order = draws.permutation(len(said), "others", i)
        another = [said[n] for n in order if said[n].key != own.key][:TRIED_CAPTIONS]
        found.append([[Judged(placed[i], prompt, level) for level in FIT_LEVELS] for prompt in [own, *another]])
    return found


def _fit(rivals: list[list[list[Judged]]], errors: Errors) -> CaptionFit | None:
    """Each image's own caption against the others'; None without two captions."""
    if not rivals:
        return None
    sums = [[sum(errors[one.key] for one in prompt) for prompt in said] for said in rivals]
    return CaptionFit(sum(min(one) == one[0] for one in sums) / len(sums), 1 / len(rivals[0]))


def relative_change(norms: Iterable[tuple[float, float]]) -> float:
    """||dW|| / ||W|| over the modules an adapter changes; norms: of both, of each."""
    squares = [(change**2, weight**2) for change, weight in norms]
    moved, whole = sum(change for change, _ in squares), sum(weight for _, weight in squares)
    return math.sqrt(moved / whole) if whole else 0.0


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """||b - a|| / ||a|| over all tensors of two state dicts."""
    moved = sum(float((b[n].float() - t.float()).double().square().sum()) for n, t in a.items())
    whole = sum(float(t.float().double().square().sum()) for t in a.values())
    return math.sqrt(moved / whole) if whole else math.inf


@torch.no_grad()
def output_change(
    shown: Sequence[Prompt | str], shape: tuple[int, ...], captions: Captions, autocast: Autocast, px: int = AT_ONCE_PX
) -> float:
    """||with - without|| / ||without|| of the prediction for these captions, at seeded noise over the levels.

    shape: of latents, (c, ..., h, w). px: of one batch, at most.
    """
    moved, whole, family = 0.0, 0.0, captions.family
    side = family.facts.vae_scale_factor
    together = max(1, px // (shape[-1] * shape[-2] * side**2))
    with evaluation_mode(family), autocast():
        for first in range(0, len(LEVELS), together):
            rows = range(len(LEVELS))[first : first + together]
            t = _at(captions, [LEVELS[i] for i in rows])
            noise = torch.stack([draws.normal(shape, draws.key("effect", i)) for i in rows]).to(captions.device)
            prompts = as_prompts(shown[i % len(shown)] for i in rows)
            with_it = family.predict(noise, t, Conditioning(_read(captions, prompts))).float()
            with adapters.disabled(family.parts.loaded()):
                without = family.predict(noise, t, Conditioning(_read(captions, prompts))).float()
            moved += float((with_it - without).square().sum())
            whole += float(without.square().sum())
    return math.sqrt(moved / whole) if whole else math.inf


@torch.no_grad()
def errors(
    asked: Sequence[Judged], latents: Latents, captions: Captions, autocast: Autocast, px: int, masks: Masks = NO_MASKS
) -> Errors:
    """Mean squared error of each prediction where its image's mask is, at noise that belongs to its image and level:
    each is made once, in batches of up to so many px, and is the same up to rounding whatever else is asked."""
    found: dict[tuple[str, str, float], float] = {}
    with evaluation_mode(captions.family), autocast():
        for batch in _batches({one.key: one for one in asked}.values(), px):
            made = _errors(batch, latents, captions, masks).tolist()
            found.update(zip((one.key for one in batch), made, strict=True))
    return found


def _batches(asked: Iterable[Judged], px: int) -> Iterator[list[Judged]]:
    """Of one bucket each; one prompt's in a row, so that it is read seldom."""
    ordered = sorted(asked, key=lambda one: (one.placed.bucket, one.prompt.key))
    for bucket, alike in groupby(ordered, lambda one: one.placed.bucket):
        together = max(1, px // (bucket.width * bucket.height))
        while batch := list(islice(alike, together)):
            yield batch


def _errors(batch: Sequence[Judged], latents: Latents, captions: Captions, masks: Masks) -> Tensor:
    """(b,), float32."""
    family, device = captions.family, captions.device
    t = _at(captions, [one.level for one in batch])
    noise = torch.stack([_noise(one, latents) for one in batch]).to(device)
    shown = [(one.placed.example, *one.placed.example.controls) for one in batch]
    x0, *control = (_latents(captions, latents, each) for each in zip(*shown, strict=True))
    size = torch.tensor([size_conditioning(one.placed.example.size, one.placed.bucket) for one in batch]).to(device)
    given = Conditioning(_read(captions, [one.prompt for one in batch]), size, tuple(control))
    output = family.predict(family.process.add_noise(x0, noise, t), t, given)
    mask = masks.stacked([(one.placed.example.name, STRAIGHT) for one in batch], x0.shape)
    target = family.process.target(x0, noise, t)
    return (
        squared_error(output, target) if mask is None else masked_error(output, target, mask.to(device), masks.outside)
    )


def _read(captions: Captions, prompts: Sequence[Prompt]) -> Text:
    """What the denoiser reads of each, read once."""
    each = {prompt.key: prompt for prompt in prompts}
    place = {key: i for i, key in enumerate(each)}
    rows = torch.tensor([place[prompt.key] for prompt in prompts], device=captions.device)
    return captions.read(list(each.values())).each(lambda part: part[rows])


def _at(captions: Captions, levels: Sequence[float]) -> Tensor:
    return captions.family.process.at(torch.tensor(levels, dtype=torch.float64)).to(captions.device)


def _noise(asked: Judged, latents: Latents) -> Tensor:
    name = asked.placed.example.name
    return draws.normal(tuple(latents[name, STRAIGHT].mean.shape), draws.key("held out", name, str(asked.level)))


def _latents(captions: Captions, latents: Latents, examples: Sequence[Example]) -> Tensor:
    """The middles of their distributions, scaled, (b, c, ..., h, w)."""
    mean = torch.stack([latents[example.name, STRAIGHT].mean for example in examples])
    return captions.family.latents(Moments(mean, torch.zeros_like(mean)), torch.zeros_like(mean)).to(captions.device)
