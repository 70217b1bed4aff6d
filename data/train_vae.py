"""The autoencoder of the pocket base, trained on renders made as it goes: `python data/train_vae.py OUT`.

Small squares cut out of the pictures teach most of it at a quarter of the cost; the last part sees whole pictures.
GroupNorm has few, large groups: with small ones flat colours were not learnt. A second leg pulls the latents hard
towards the standard normal, so that the decoder bears the errors of whoever paints latents.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import icons
import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor

BLOCKS = {64: (16, 32, 64), 128: (16, 32, 64, 64)}
"""channels by picture side: factor 4 and factor 8, so that latents are 16 x 16 either way"""
WHOLE_FRACTION = 0.25
NARROWER = 6.0
"""how much is taken off the logarithm of the variance once it has served the training: draws are then nearly exact"""


class Leg(NamedTuple):
    steps: int
    peak: float
    """learning rate, falling linearly"""
    kl: float
    """weight of the divergence from the standard normal, for each number of the latents"""


LEGS = (Leg(6000, 3e-3, 1e-4), Leg(1000, 1.5e-3, 5e-2))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(out: Path, px: Annotated[int, typer.Option(help="64 or 128: the side of a picture")] = 64) -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(DEVICE.type == "cpu")
    vae = build(px).to(DEVICE)
    for number, leg in enumerate(LEGS):
        train(vae, leg, f"vae {number}", px)
        vae.save_pretrained(out)
    normalise(vae, pictures("vae scale", 0, 1024, px))
    vae.save_pretrained(out)


def train(vae: AutoencoderKL, leg: Leg, seed: str, px: int) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    began, test = time.monotonic(), pictures("vae test", 0, 128, px)
    for step, shown in enumerate(batches(seed, leg.steps, px)):
        for group in optimizer.param_groups:
            group["lr"] = leg.peak * min(1, (step + 1) / 100) * (1 - step / leg.steps)
        loss = objective(vae, shown, leg.kl)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0:
            seen, seconds = (step + 1) * 16, time.monotonic() - began
            typer.echo(f"{step + 1} steps, {seen / seconds:.0f} pictures/s, PSNR {psnr(vae, test):.2f} dB")


def build(px: int) -> AutoencoderKL:
    blocks = BLOCKS[px]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(blocks), up_block_types=("UpDecoderBlock2D",) * len(blocks),
        block_out_channels=blocks, layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=px,
    )  # fmt: skip


def pictures(seed: str, first: int, count: int, px: int) -> Tensor:
    """(count, 3, px, px) in [-1, 1]"""
    drawn = np.stack([icons.render(icons.scene(seed, i), px) for i in range(first, first + count)])
    return torch.from_numpy(drawn).to(DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1


def batches(seed: str, steps: int, px: int) -> Iterator[Tensor]:
    """16 new pictures a step: first two squares of half the side from each, then whole."""
    chance = np.random.default_rng(0)
    for step in range(steps):
        whole = pictures(seed, step * 16, 16, px)
        if step >= steps * (1 - WHOLE_FRACTION):
            yield whole
            continue
        corners = chance.integers(0, px // 2 + 1, (32, 2))
        yield torch.stack([
            whole[i % 16, :, y : y + px // 2, x : x + px // 2] for i, (y, x) in enumerate(corners)
        ])  # fmt: skip


def objective(vae: AutoencoderKL, shown: Tensor, kl: float) -> Tensor:
    """Absolute and squared error, and a pull of the latents towards the standard normal."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        latents = vae.encode(shown).latent_dist
        back = vae.decode(latents.sample()).sample
    error = back.float() - shown
    return error.abs().mean() + 2 * error.square().mean() + kl * latents.kl().mean() / latents.mean[0].numel()


@torch.no_grad()
def normalise(vae: AutoencoderKL, shown: Tensor) -> None:
    """Latents of mean 0 and deviation 1 in each channel, by moving scale and shift into the convolutions between
    encoder and decoder: pipelines have one scaling factor for all channels, and no shift. The variance is
    narrowed as well."""
    found = moments(vae, shown)
    mean, std = found.mean((0, 2, 3)), found.std((0, 2, 3))
    into, back = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] /= std.view(4, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.bias[4:] -= 2 * std.log() + NARROWER
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std.view(1, 4, 1, 1)
    vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def moments(vae: AutoencoderKL, shown: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mode() for part in shown.split(64)])


@torch.no_grad()
def psnr(vae: AutoencoderKL, shown: Tensor) -> float:
    """Mean over pictures, dB."""
    back = vae.decode(moments(vae, shown)).sample.clamp(-1, 1)
    return float((-10 * ((back - shown) / 2).square().mean((1, 2, 3)).log10()).mean())


if __name__ == "__main__":
    typer.run(main)
