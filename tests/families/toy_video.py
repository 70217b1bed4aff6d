"""A small video family in one file: latents (b, c, frames, h, w), by diffusers' own Wan. Nothing else knows of it."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from transformers import T5EncoderModel, T5TokenizerFast

from finetune.families import autoencoder, clip_t5, flow, folder, parts
from finetune.families.base import BaseInfo, Conditioning, Labels, ModelLine, Moments, Prompt, Text
from finetune.families.folder import Part

TOKENS = 32


class StillWan(diffusers.WanPipeline):
    """Wan's pipeline, called and read as those of pictures are: clips of one frame."""

    image_processor = VaeImageProcessor()

    def __call__(self, **asked: Any) -> Any:
        return SimpleNamespace(images=super().__call__(num_frames=1, **asked).frames)


class ToyVideo(flow.FlowFolder):
    name = "toy_video"
    PIPELINE = "WanPipeline"
    PARTS: ClassVar = {
        "transformer": Part("diffusers:WanTransformer3DModel"),
        "vae": Part("diffusers:AutoencoderKLWan"),
        "text_encoder": Part("transformers:T5EncoderModel", large=True),
    }
    TOKENIZERS: ClassVar = {"text_encoder": folder.t5_tokenizer("tokenizer")}
    blocks = ("blocks.*",)
    lines = (ModelLine("Toy Video", ("toy_video", "toy-video")),)
    encoders = ("text_encoder",)
    presets: ClassVar = flow.presets(
        ("ffn.net.0.proj", "ffn.net.2"), ("time_proj",), ("to_q", "to_k", "to_v", "to_out.0")
    )

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        vae = parts.config(path / "vae" / "config.json")
        width = int(parts.config(path / "transformer" / "config.json")["text_dim"])
        return flow.facts(
            cls.name, "toy-video", 2 ** len(vae["temperal_downsample"]), resolution=128, max_tokens=TOKENS,
            evidence=cls.PIPELINE, guidance=5.0, channels=int(vae["z_dim"]), text=(TOKENS, width, 0), frames=1,
        )  # fmt: skip

    @classmethod
    def pipeline_class(cls) -> Any:
        return StillWan

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        return Labels("Toy Video", "toy_video", "toy-video")

    def encode_images(self, pixels: Tensor) -> Moments:
        """A picture is a clip of one frame."""
        return super().encode_images(pixels.unsqueeze(2))

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.parts["vae"], latents).squeeze(2)

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        captions = [prompt.caption for prompt in prompts]
        return clip_t5.t5(self.parts[encoder], self.tokenizers[encoder], captions, TOKENS)

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("transformer")
        weight = parts.float_dtype(denoiser)
        text = given.text.tokens.to(noisy.device, weight)
        output: Tensor = denoiser(noisy.to(weight), t * 1000, text, return_dict=False)[0]
        return output

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": text.tokens, "negative_prompt_embeds": negative.tokens, "guidance_scale": guidance,
        }  # fmt: skip


def toy_video(path: Path, text_encoder: T5EncoderModel, tokenizer: T5TokenizerFast) -> Path:
    """Write a base of random weights."""
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=text_encoder.config.d_model, freq_dim=16, ffn_dim=32,
        num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
    with torch.no_grad():
        for parameter in [*transformer.parameters(), *vae.parameters()]:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    diffusers.WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer).save_pretrained(path)
    return path
