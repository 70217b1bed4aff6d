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
    return _decoded(vae, _unscaled(vae, latents))


@torch.no_grad()
def decode_frame(vae: nn.Module, latents: Tensor) -> Tensor:
    """The same by an autoencoder of videos, to which a picture is one of a single frame."""
    return _decoded(vae, _unscaled(vae, latents).unsqueeze(2)).squeeze(2)


def _decoded(vae: nn.Module, latents: Tensor) -> Tensor:
    with torch.autocast(latents.device.type, enabled=False):
        pixels: Tensor = cast(Any, vae).decode(latents).sample
    return pixels


def _unscaled(vae: nn.Module, latents: Tensor) -> Tensor:
    scale, shift = _scale(vae, latents)
    return latents.float() / scale + shift


def _scale(vae: nn.Module, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(scale, shift): of all channels alike, or of each where the base says so."""
    config = cast(Any, vae).config
    scale = config.get("scaling_factor", 1.0)
    if config.get("latents_mean") is None:
        return scale, config.shift_factor or 0.0
    each = (-1, *[1] * (like.ndim - 2))  # a number a channel, which is the second axis
    mean, deviation = (torch.tensor(config[f"latents_{one}"], device=like.device).view(each) for one in ("mean", "std"))
    return scale / deviation, mean
