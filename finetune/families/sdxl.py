"""Stable Diffusion XL: a larger UNet that reads two CLIP text encoders and is told how each picture was cut.

Sources: arXiv:2307.01952; the pipeline and block structure are diffusers' StableDiffusionXLPipeline. Adapters name the
UNet's modules as the original code (Stability-AI/generative-models, sgm) does, which every reader knows.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from finetune.families import clip_t5, folder, parts, unet
from finetune.families.base import BaseInfo, Conditioning, Labels, ModelLine, Prompt, Text
from finetune.families.folder import Part

_PREFIXES = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_LAYERS = 3
"""sgm's blocks for one of diffusers': two layers and a change of size; three layers on the way up"""
_RESNET = {
    "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_TOP = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_IN_BLOCK = re.compile(r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>\w+)\.(?P<layer>\d+)\.(?P<rest>.+)")
_IN_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<layer>\d+)\.(?P<rest>.+)")


def _without_last(text: nn.Module) -> nn.Module:
    """The UNet reads the last layer but one, so nothing that the last one learns is ever seen."""
    encoder = getattr(text, "text_model", text).encoder
    parts.never_read(cast(Any, encoder).layers[-1])
    return text


class StableDiffusionXL(unet.UNetFolder):
    name = "sdxl"
    PIPELINE = "StableDiffusionXLPipeline"
    PARTS: ClassVar = {
        "unet": Part("diffusers:UNet2DConditionModel"),
        "vae": Part("diffusers:AutoencoderKL"),
        "text_encoder": Part("transformers:CLIPTextModel", _without_last),
        "text_encoder_2": Part("transformers:CLIPTextModelWithProjection"),
    }
    TOKENIZERS: ClassVar = {
        "text_encoder": folder.clip_tokenizer(),
        "text_encoder_2": folder.clip_tokenizer("tokenizer_2"),
    }
    VARIANTS = ("sdxl",)
    lines = (
        ModelLine("Stable Diffusion XL", ("sdxl", "stable-diffusion-xl"), card="SDXL",
             keys=("lora_te2_", "text_encoder_2.", "lora_unet_input_blocks_")),
    )  # fmt: skip
    encoders = ("text_encoder", "text_encoder_2")
    presets: ClassVar = {
        "unet": unet.PRESETS,
        "text_encoder": unet.TEXT_PRESETS,
        "text_encoder_2": unet.TEXT_PRESETS,
    }

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        denoiser = parts.config(path / "unet" / "config.json")
        made = unet.facts(path, cls.name, "sdxl", cls.PIPELINE, guidance=5.0)
        tokens, width, _ = made.text
        return made._replace(text=(tokens, width, _pooled(denoiser)))

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        return Labels("Stable Diffusion XL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base")

    @classmethod
    def kohya_name(cls, name: str) -> str:
        component, _, path = name.partition(".")
        prefix = _PREFIXES.get(component)
        return (prefix + path if prefix else "lora_unet_" + sgm_path(path)).replace(".", "_")

    def reading(self, tokenizer: Any) -> tuple[object, ...]:
        return (tokenizer.pad_token_id,)

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        """The last layer but one, before the final norm; of the second encoder the pooled state, too (T6)."""
        ids = clip_t5.ids(self.tokenizers[encoder], [p.caption for p in prompts], self.facts.max_tokens)
        module: Any = self.parts[encoder]
        made = module(ids.to(next(module.parameters()).device), output_hidden_states=True)
        return Text(made.hidden_states[-2], made.text_embeds if encoder == "text_encoder_2" else None)

    def combine(self, texts: Sequence[Text]) -> Text:
        first, second = texts
        return Text(torch.cat([first.tokens, second.tokens.to(first.tokens.device)], -1), second.pooled)

    def added(self, noisy: Tensor, given: Conditioning) -> dict[str, Any]:
        pooled = given.text.pooled
        assert pooled is not None
        return {"added_cond_kwargs": {
            "text_embeds": pooled.to(noisy.device, parts.float_dtype(self.parts["unet"])),
            # in float32: bf16 would round 1023 to 1024 before the sinusoid (T5)
            "time_ids": (_uncut(noisy, self.facts) if given.size is None else given.size).float().to(noisy.device),
        }}  # fmt: skip

    def pipeline_options(self, safety: bool) -> dict[str, Any]:
        return {"add_watermarker": False}

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": text.tokens, "pooled_prompt_embeds": text.pooled, "guidance_scale": guidance,
            "negative_prompt_embeds": negative.tokens, "negative_pooled_prompt_embeds": negative.pooled,
        }  # fmt: skip


def sgm_path(path: str) -> str:
    """A module's path in diffusers' UNet -> in the original code's."""
    if path in _TOP:
        return _TOP[path]
    if found := _IN_MIDDLE.fullmatch(path):
        middle = 1 if found["kind"] == "attentions" else 2 * int(found["layer"])
        return f"middle_block.{middle}.{_inside(found['kind'], found['rest'])}"
    found = _IN_BLOCK.fullmatch(path)
    if found is None:
        return path
    kind, block, layer = found["kind"], int(found["block"]), int(found["layer"])
    if found["side"] == "down":
        if kind == "downsamplers":
            return f"input_blocks.{_LAYERS * (block + 1)}.0.op"
        place = f"input_blocks.{1 + _LAYERS * block + layer}"
    elif kind == "upsamplers":
        return f"output_blocks.{_LAYERS * (block + 1) - 1}.2.{found['rest']}"
    else:
        place = f"output_blocks.{_LAYERS * block + layer}"
    return f"{place}.{int(kind == 'attentions')}.{_inside(kind, found['rest'])}"


def _inside(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest


def _uncut(noisy: Tensor, facts: BaseInfo) -> Tensor:
    """The sizes of pictures as large as their latents; the factor is that of the autoencoder."""
    cell = facts.stride // 4
    height, width = noisy.shape[-2] * cell, noisy.shape[-1] * cell
    return torch.tensor([[height, width, 0, 0, height, width]]).repeat(len(noisy), 1)


def _pooled(denoiser: Mapping[str, Any]) -> int:
    return int(denoiser["projection_class_embeddings_input_dim"]) - 6 * int(denoiser["addition_time_embed_dim"])
