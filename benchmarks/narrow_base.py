"""Stable Diffusion 1.5 at a quarter of its widths, with random weights: its structure, at a cost for a CPU."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from finetune.families.single_file import load_tokenizer

NARROWER = 4
GROUPS = 16
"""of norms: 32 do not divide 320 / 4"""


def make_narrow_base(folder: Path, tokenizer: Path) -> None:
    """Written as a diffusers folder; its tokenizer a second time by itself."""
    torch.manual_seed(0)
    words = load_tokenizer("sd1")
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=32, block_out_channels=_narrow(320, 640, 1280, 1280), cross_attention_dim=768 // NARROWER,
            norm_num_groups=GROUPS, attention_head_dim=8,
        ),
        vae=AutoencoderKL(
            block_out_channels=_narrow(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, norm_num_groups=GROUPS,
            sample_size=256,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768 // NARROWER, intermediate_size=3072 // NARROWER,
                num_hidden_layers=12, num_attention_heads=12 // NARROWER, max_position_embeddings=77,
                projection_dim=768 // NARROWER,
            )
        ),
        tokenizer=words,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    words.save_pretrained(tokenizer)


def _narrow(*channels: int) -> tuple[int, ...]:
    return tuple(count // NARROWER for count in channels)
