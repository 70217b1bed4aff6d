"""AutoencoderKL, as most families use it: in float32 always, since half precision overflows some of them (T7).

Shapes: pixels (b, 3, H, W) in [-1, 1]; latents (b, c, h, w).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.families.base import Moments


@torch.no_grad()
def encode(vae: nn.Module, pixels: Tensor) -> Moments:
    with torch.autocast(pixels.device.type, enabled=False):
        found = cast(Any, vae).encode(pixels.float()).latent_dist
    return Moments(found.mean.float(), found.logvar.float())


def latents(vae: nn.Module, moments: Moments, noise: Tensor) -> Tensor:
    """A draw from the distribution, shifted, then scaled, as the denoiser knows it."""
    drawn = moments.mean + (0.5 * moments.logvar).exp() * noise
    scale, shift = _scale(vae, drawn)
    return (drawn - shift) * scale


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """About [-1, 1]."""
    scale, shift = _scale(vae, latents)
    unscaled = latents.float() / scale + shift
    with torch.autocast(latents.device.type, enabled=False):
        pixels: Tensor = cast(Any, vae).decode(unscaled).sample
    return pixels


def _scale(vae: nn.Module, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(scale, shift): of all channels alike, or of each where the base says so."""
    config = cast(Any, vae).config
    if config.get("latents_mean") is None:
        return config.scaling_factor, config.shift_factor or 0.0
    mean, deviation = (torch.tensor(config[key], device=like.device).view(-1, 1, 1) for key in _EACH)
    return config.scaling_factor / deviation, mean


_EACH = ("latents_mean", "latents_std")
