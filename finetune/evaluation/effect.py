"""Did it learn? Losses at fixed noise, the size of the change, and whether captions still matter."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.adapters import attach as adapters
from finetune.data.buckets import size_conditioning
from finetune.data.dataset import Placed
from finetune.data.example import Example
from finetune.diffusion import chance as draws
from finetune.diffusion.loss import squared_error
from finetune.encoding.images import STRAIGHT, Crop
from finetune.encoding.text import Captions
from finetune.events import CaptionFit, TrainingEffect
from finetune.families.base import Conditioning, Moments, Prompt, Text, evaluation_mode
from finetune.machine import Autocast

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""shares of the noise path at which losses are taken"""
NO_EFFECT = 1e-6
"""relative change of weights or output below which an adapter does nothing"""

TRIED_IMAGES, TRIED_CAPTIONS = 12, 5
"""how many images are asked about, and against how many wrong captions each"""
LITTLE_GAIN = 0.02
"""share of the base's loss on the training images below which training has hardly begun"""

Latents = Mapping[tuple[str, Crop], Moments]


class Losses(NamedTuple):
    mean: float
    bands: dict[str, float]
    """level -> mean over images"""


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


@torch.no_grad()
def losses(
    placed: Sequence[Placed], latents: Latents, captions: Captions, autocast: Autocast, shown: Sequence[str] = ()
) -> Losses:
    """Mean squared error at fixed levels and at noise that belongs to each image: the same whenever it is asked.

    shown: other captions than the images' own.
    """
    shown = shown or [p.example.caption for p in placed]
    prompts = [Prompt.of(p.example, c) for p, c in zip(placed, shown, strict=True)]
    bands: dict[str, float] = {}
    with evaluation_mode(captions.family), autocast():
        texts = {p.key: captions.read([p]) for p in {p.key: p for p in prompts}.values()}
        for level in LEVELS:
            found = [_loss(captions, p, latents, texts[c.key], level) for p, c in zip(placed, prompts, strict=True)]
            bands[str(level)] = float(torch.stack(found).mean())
    return Losses(sum(bands.values()) / len(bands), bands)


def measure_effect(
    moved: dict[str, float], placed: Sequence[Placed], latents: Latents, captions: Captions, autocast: Autocast
) -> TrainingEffect:
    """On the first images of a fixed shuffle, adapter off and on.

    moved: component -> how far its weights moved, as `relative_change` measures it.
    """
    tried = [placed[i] for i in draws.permutation(len(placed), "learnt")[:TRIED_IMAGES]]
    shown, shape = [Prompt.of(p.example) for p in placed], tuple(next(iter(latents.values())).mean.shape)
    output = output_change(shown, shape, captions, autocast)
    with adapters.disabled(captions.family.parts.loaded()):
        base = losses(tried, latents, captions, autocast).mean
        base_fit = caption_fit(placed, latents, captions, autocast)
    adapted = losses(tried, latents, captions, autocast).mean
    adapted_fit = caption_fit(placed, latents, captions, autocast)
    return TrainingEffect(base, adapted, base_fit, adapted_fit, moved, output)


@torch.no_grad()
def caption_fit(
    placed: Sequence[Placed], latents: Latents, captions: Captions, autocast: Autocast
) -> CaptionFit | None:
    """Each image's own caption against a few of the others', at the same noise; None without two captions."""
    said = list({(prompt := Prompt.of(p.example)).key: prompt for p in placed}.values())
    others = min(len(said) - 1, TRIED_CAPTIONS)
    if others < 1:
        return None
    tried = draws.permutation(len(placed), "learnt")[:TRIED_IMAGES]
    best = 0
    with evaluation_mode(captions.family), autocast():
        for i in tried:
            own = Prompt.of(placed[i].example)
            order = draws.permutation(len(said), "others", i)
            another = [said[n] for n in order if said[n].key != own.key]
            texts = [captions.read([prompt]) for prompt in [own, *another[:others]]]
            errors = torch.zeros(len(texts), device=captions.device)
            for level in LEVELS[1:]:
                errors += torch.stack([_loss(captions, placed[i], latents, text, level) for text in texts])
            best += int(errors.argmin() == 0)
    return CaptionFit(best / len(tried), 1 / (others + 1))


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
    shown: Sequence[Prompt | str], shape: tuple[int, ...], captions: Captions, autocast: Autocast
) -> float:
    """||with - without|| / ||without|| of the prediction for these captions, at seeded noise over the levels."""
    moved, whole, family = 0.0, 0.0, captions.family
    with evaluation_mode(family), autocast():
        for i, level in enumerate(LEVELS):
            prompt, t = shown[i % len(shown)], _at(captions, level)
            noise = draws.normal((1, *shape), draws.key("effect", i)).to(captions.device)
            with_it = family.predict(noise, t, Conditioning(captions.read([prompt]))).float()
            with adapters.disabled(family.parts.loaded()):
                without = family.predict(noise, t, Conditioning(captions.read([prompt]))).float()
            moved += float((with_it - without).square().sum())
            whole += float(without.square().sum())
    return math.sqrt(moved / whole) if whole else math.inf


def _at(captions: Captions, level: float) -> Tensor:
    return captions.family.process.at(torch.tensor([level], dtype=torch.float64)).to(captions.device)


def _loss(captions: Captions, placed: Placed, latents: Latents, text: Text, level: float) -> Tensor:
    family, device, t = captions.family, captions.device, _at(captions, level)
    shape = tuple(latents[placed.example.name, STRAIGHT].mean.shape)
    noise = draws.normal(shape, draws.key("held out", placed.example.name, str(level))).unsqueeze(0).to(device)
    x0, *control = (_latents(captions, latents, one) for one in (placed.example, *placed.example.controls))
    size = torch.tensor([size_conditioning(placed.example.size, placed.bucket)]).to(device)
    given = Conditioning(text, size, tuple(control))
    output = family.predict(family.process.add_noise(x0, noise, t), t, given)
    return squared_error(output, family.process.target(x0, noise, t))[0]


def _latents(captions: Captions, latents: Latents, example: Example) -> Tensor:
    """The middle of its distribution, scaled, (1, c, ..., h, w)."""
    mean = latents[example.name, STRAIGHT].mean.unsqueeze(0)
    return captions.family.latents(Moments(mean, torch.zeros_like(mean)), torch.zeros_like(mean)).to(captions.device)
