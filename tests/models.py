"""Small bases with the true block structure: real configs, few channels, random weights."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Variant = Literal["sd15", "sd21", "sdxl"]

_UNET = {
    # the published config's keys; what differs is named beside it
    "sd15": {"cross_attention_dim": 32, "attention_head_dim": 8, "use_linear_projection": False},  # 768
    "sd21": {"cross_attention_dim": 48, "attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True},  # 1024
    "sdxl": {
        "cross_attention_dim": 80,  # 2048: the widths of both text encoders
        "attention_head_dim": [2, 4, 4],  # 5, 10, 20
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,  # 256
        "projection_class_embeddings_input_dim": 48 + 6 * 8,  # 1280 + 6 * 256
        "transformer_layers_per_block": [1, 2, 3],  # 1, 2, 10
    },
}
_TEXT = {
    "sd15": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "hidden_act": "quick_gelu"},
    "sd21": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "hidden_act": "gelu"},
}
_PREDICTION = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon"}


def tiny_base(path: Path, variant: Variant, seed: int = 0, **scheduler: object) -> Path:
    """Write a whole pipeline folder (about 2 MB) at `path`; text encoders have `text_model.` names."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae = _unet(variant), _vae(latent_channels=4)
        if variant == "sdxl":
            texts = [CLIPTextModel(_text("sd15")), CLIPTextModelWithProjection(_text("sd21", projection_dim=48))]
        else:
            texts = [CLIPTextModel(_text(variant))]
    table = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": _PREDICTION[variant],
    }  # fmt: skip
    made = DDIMScheduler(**(table | scheduler))
    words = _tokenizer(path / "words")
    pipeline: Any
    if variant == "sdxl":
        # the second tokenizer of the real base fills captions up with token 0
        others = _tokenizer(path / "words_2", pad="!")
        pipeline = StableDiffusionXLPipeline(vae, *texts, words, others, unet, made, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(vae, *texts, words, unet, made, None, None, requires_safety_checker=False)
    pipeline.save_pretrained(path)
    for part in ("text_encoder", "text_encoder_2"):
        if (path / part).is_dir():
            _canonical_text_names(path / part / "model.safetensors")
    return path


def _unet(variant: Variant) -> UNet2DConditionModel:
    blocks = 3 if variant == "sdxl" else 4
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    if variant == "sdxl":
        down, up = ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 32)[:blocks],  # 320, 640, 1280, 1280
        norm_num_groups=8,  # 32
        layers_per_block=2,
        down_block_types=down,
        up_block_types=up,
        **_UNET[variant],
    )


def _vae(latent_channels: int, **changes: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),  # 128, 256, 512, 512
        norm_num_groups=2,  # 32
        layers_per_block=1,  # 2
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        sample_size=64,
        **changes,
    )


def _text(kind: str, **changes: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        num_hidden_layers=2,  # 12, 23 and 32
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        **_TEXT[kind],
        **changes,
    )


def _tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's 256 byte symbols, each alone and ending a word, and no merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    symbols = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(rest))]
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=pad)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return made


def _canonical_text_names(file: Path) -> None:
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
