"""Did it learn? Losses at fixed noise, the size of the change, and whether captions still matter."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune import adapters, cache, draws
from finetune.cache import Crop
from finetune.dataset import Placed
from finetune.families.base import Family, Moments, Text
from finetune.lora import Lora
from finetune.trainer import Autocast, squared_error

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


class Fit(NamedTuple):
    """For how many images, of those tried, their own caption predicts them better than other images' captions."""

    share: float
    chance: float
    """the share that captions dealt out blindly would have"""


class Learnt(NamedTuple):
    """What training did to the prediction of its own images, at fixed noise, with the base as the measure."""

    base: float
    """mean squared error"""
    adapted: float
    base_fit: Fit | None
    """None: all captions are the same"""
    adapted_fit: Fit | None

    @property
    def gain(self) -> float:
        """Share of the base's loss that training took away."""
        return 1 - self.adapted / self.base

    def doubts(self) -> list[str]:
        """What speaks against this having worked, each with the likely cause."""
        found = []
        if self.gain < LITTLE_GAIN:
            found.append(
                f"the training images are predicted only {self.gain:.1%} better than by the base: "
                "more train.steps, or another optimizer.learning_rate"
            )
        if self.base_fit and self.base_fit.share < 2 * self.base_fit.chance:
            found.append(
                f"to the base, only {self.base_fit.share:.0%} of the captions fit their own image best "
                f"({self.base_fit.chance:.0%} would by chance): are they mixed up, or too vague?"
            )
        elif self.base_fit and self.adapted_fit and self.adapted_fit.share < 0.5 * self.base_fit.share:
            found.append("captions matter less than they did to the base: trained too long, or too fast?")
        return found


@torch.no_grad()
def losses(
    family: Family, placed: Sequence[Placed], latents: Latents, device: torch.device, autocast: Autocast,
    captions: Sequence[str] | None = None,
) -> Losses:  # fmt: skip
    """Mean squared error at fixed levels and at noise that belongs to each image: the same whenever it is asked."""
    shown = captions or [p.example.caption for p in placed]
    bands: dict[str, float] = {}
    with quiet(family), autocast():
        texts = {c: family.encode_text([c]) for c in dict.fromkeys(shown)}
        for level in LEVELS:
            t = family.process.rows(torch.tensor([level], dtype=torch.float64)).to(device)
            found = [_loss(family, p, latents, texts[c], t, level, device) for p, c in zip(placed, shown, strict=True)]
            bands[str(level)] = float(torch.stack(found).mean())
    return Losses(sum(bands.values()) / len(bands), bands)


def learnt(
    family: Family, placed: Sequence[Placed], latents: Latents, device: torch.device, autocast: Autocast
) -> Learnt:
    """The first images of a fixed shuffle, adapter off and on."""
    tried = [placed[i] for i in draws.permutation(len(placed), "learnt")[:TRIED_IMAGES]]
    with adapters.detached(family.components):
        base = losses(family, tried, latents, device, autocast).mean
        base_fit = caption_fit(family, placed, latents, device, autocast)
    adapted = losses(family, tried, latents, device, autocast).mean
    return Learnt(base, adapted, base_fit, caption_fit(family, placed, latents, device, autocast))


@torch.no_grad()
def caption_fit(
    family: Family, placed: Sequence[Placed], latents: Latents, device: torch.device, autocast: Autocast
) -> Fit | None:
    """Each image's own caption against a few of the others', at the same noise; None without two captions."""
    captions = list(dict.fromkeys(p.example.caption for p in placed))
    others = min(len(captions) - 1, TRIED_CAPTIONS)
    if others < 1:
        return None
    tried = draws.permutation(len(placed), "learnt")[:TRIED_IMAGES]
    best = 0
    with quiet(family), autocast():
        for i in tried:
            own = placed[i].example.caption
            order = draws.permutation(len(captions), "others", i)
            shown = [own, *[captions[c] for c in order if captions[c] != own][:others]]
            texts = [family.encode_text([c]) for c in shown]
            errors = torch.zeros(len(shown), device=device)
            for level in LEVELS[1:]:
                t = family.process.rows(torch.tensor([level], dtype=torch.float64)).to(device)
                errors += torch.stack([_loss(family, placed[i], latents, text, t, level, device) for text in texts])
            best += int(errors.argmin() == 0)
    return Fit(best / len(tried), 1 / (others + 1))


def relative_change(weights: Mapping[str, Tensor], changes: Mapping[str, Lora]) -> float:
    """||dW|| / ||W|| over the modules an adapter changes."""
    moved = sum(float(_delta_square(change)) for change in changes.values())
    whole = sum(float(weights[name].detach().double().square().sum()) for name in changes)
    return math.sqrt(moved / whole) if whole else 0.0


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """||b - a|| / ||a|| over all tensors of two state dicts."""
    moved = sum(float((b[n].float() - t.float()).double().square().sum()) for n, t in a.items())
    whole = sum(float(t.float().double().square().sum()) for t in a.values())
    return math.sqrt(moved / whole) if whole else math.inf


@torch.no_grad()
def output_change(
    family: Family, captions: Sequence[str], shape: tuple[int, int, int], device: torch.device, autocast: Autocast
) -> float:
    """||with - without|| / ||without|| of the prediction, at seeded noise over the levels."""
    moved, whole = 0.0, 0.0
    with quiet(family), autocast():
        for i, level in enumerate(LEVELS):
            caption = captions[i % len(captions)]
            t = family.process.rows(torch.tensor([level], dtype=torch.float64)).to(device)
            noise = draws.normal((1, *shape), draws.key("effect", i)).to(device)
            with_it = family.predict(noise, t, family.encode_text([caption])).float()
            with adapters.detached(family.components):
                without = family.predict(noise, t, family.encode_text([caption])).float()
            moved += float((with_it - without).square().sum())
            whole += float(without.square().sum())
    return math.sqrt(moved / whole) if whole else math.inf


class quiet:
    """Evaluation mode for every component inside the block, and as it was after."""

    def __init__(self, family: Family) -> None:
        self.modules: list[tuple[nn.Module, bool]] = [
            (m, m.training) for c in family.components.values() for m in c.modules()
        ]

    def __enter__(self) -> None:
        for module, _ in self.modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, was in self.modules:
            module.training = was


def _loss(
    family: Family, placed: Placed, latents: Latents, text: Text, t: Tensor, level: float, device: torch.device
) -> Tensor:
    moments = latents[placed.example.name, Crop(cache.CENTER, False)]
    shape = tuple(moments.mean.shape)
    noise = draws.normal(shape, draws.key("held out", placed.example.name, str(level))).unsqueeze(0).to(device)
    x0 = family.latents(Moments(moments.mean, moments.logvar), torch.zeros(shape)).unsqueeze(0).to(device)
    output = family.predict(family.process.add_noise(x0, noise, t), t, text)
    return squared_error(output, family.process.target(x0, noise, t))[0]


def _delta_square(change: Lora) -> Tensor:
    """||scale * up @ down||^2 without forming the product: tr((up'up)(down down'))."""
    up, down = change.up.double().flatten(1), change.down.double().flatten(1)
    return ((up.T @ up) * (down @ down.T)).sum() * change.scale**2
