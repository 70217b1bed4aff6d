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

Latents = Mapping[tuple[str, Crop], Moments]


class Losses(NamedTuple):
    mean: float
    bands: dict[str, float]
    """level -> mean over images"""


class Learnt(NamedTuple):
    """Losses on the training images at fixed noise, with the base as the measure."""

    base: float
    adapted: float
    base_mismatched: float
    """with each caption given to another image"""
    adapted_mismatched: float

    @property
    def gain(self) -> float:
        """Share of the base's loss that training took away."""
        return 1 - self.adapted / self.base

    @property
    def caption_grip(self) -> float:
        """How much worse a wrong caption is, relative to the right one, with the adapter."""
        return self.adapted_mismatched / self.adapted - 1

    @property
    def base_caption_grip(self) -> float:
        return self.base_mismatched / self.base - 1


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
    """Training images, right and wrong captions, adapter off and on."""
    captions = [p.example.caption for p in placed]
    wrong = mismatched(captions)
    with adapters.detached(family.components):
        base = losses(family, placed, latents, device, autocast).mean
        base_wrong = losses(family, placed, latents, device, autocast, wrong).mean
    adapted = losses(family, placed, latents, device, autocast).mean
    return Learnt(base, adapted, base_wrong, losses(family, placed, latents, device, autocast, wrong).mean)


def mismatched(captions: Sequence[str]) -> list[str]:
    """Each caption moved to the next image with another one."""
    n = len(captions)
    return [next((captions[(i + k) % n] for k in range(1, n) if captions[(i + k) % n] != c), c)
            for i, c in enumerate(captions)]  # fmt: skip


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
