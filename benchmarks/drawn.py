"""Pictures for benchmarks: many prompts at once, each from its own seed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "data"))

import icons

from finetune.families.base import Family

STEPS, GUIDANCE, BATCH = 20, 3.0, 24
"""as the card of the pocket base says it is sampled"""


def draw(family: Family, prompts: Sequence[str], seeds: Sequence[int], pipeline: Any = None) -> list[Image.Image]:
    """One picture a prompt, at the base's own resolution; `pipeline` may wear an adapter."""
    pipeline, side = pipeline or family.pipeline(), family.facts.resolution
    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), BATCH):
        chances = [torch.Generator().manual_seed(seed) for seed in seeds[first : first + BATCH]]
        with torch.no_grad():
            latents = pipeline(
                list(prompts[first : first + BATCH]), num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                width=side, height=side, generator=chances, output_type="latent",
            ).images  # fmt: skip
        pictures += pipeline.image_processor.postprocess(family.decode_latents(latents), output_type="pil")
    return pictures


def prompt(name: str, colour: str) -> str:
    return f"{icons.article(name)} {name} on {icons.article(colour)} {colour} background"
