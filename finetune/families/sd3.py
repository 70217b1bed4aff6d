"""Stable Diffusion 3 and 3.5: a flow transformer that reads two CLIP encoders and T5.

Source: arXiv:2403.03206; diffusers' StableDiffusion3Pipeline and SD3Transformer2DModel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from finetune.families import clip_t5, flow, folder, parts
from finetune.families.base import BaseInfo, Conditioning, Labels, ModelLine, Prompt, Text
from finetune.families.folder import Part
from finetune.families.readers import DIFFUSERS, Reader

T5_TOKENS = 256
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
_MODULATION = ("norm1.linear", "norm1_context.linear")

_BLOCK, _PICTURE, _WORDS = "transformer_blocks.N.", "joint_blocks.N.x_block.", "joint_blocks.N.context_block."
_ORIGINAL: dict[str, str | tuple[str, int]] = {
    # as github.com/Stability-AI/sd3.5 names them
    **{f"{_BLOCK}attn.to_{x}": (f"{_PICTURE}attn.qkv", i) for i, x in enumerate("qkv")},
    **{f"{_BLOCK}attn2.to_{x}": (f"{_PICTURE}attn2.qkv", i) for i, x in enumerate("qkv")},
    **{f"{_BLOCK}attn.add_{x}_proj": (f"{_WORDS}attn.qkv", i) for i, x in enumerate("qkv")},
    f"{_BLOCK}attn.to_out.0": f"{_PICTURE}attn.proj",
    f"{_BLOCK}attn2.to_out.0": f"{_PICTURE}attn2.proj",
    f"{_BLOCK}attn.to_add_out": f"{_WORDS}attn.proj",
    f"{_BLOCK}ff.net.0.proj": f"{_PICTURE}mlp.fc1",
    f"{_BLOCK}ff.net.2": f"{_PICTURE}mlp.fc2",
    f"{_BLOCK}ff_context.net.0.proj": f"{_WORDS}mlp.fc1",
    f"{_BLOCK}ff_context.net.2": f"{_WORDS}mlp.fc2",
    f"{_BLOCK}norm1.linear": f"{_PICTURE}adaLN_modulation.1",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
}
"""not norm1_context, whose halves diffusers has the other way round in the last block"""


def _marked(transformer: nn.Module) -> nn.Module:
    """The last block's text tokens go nowhere, and so do their queries."""
    parts.never_read(cast(Any, transformer).transformer_blocks[-1].attn.add_q_proj)
    return transformer


class StableDiffusion3(flow.FlowFolder):
    name = "sd3"
    PIPELINE = "StableDiffusion3Pipeline"
    readers: ClassVar[tuple[Reader, ...]] = (
        DIFFUSERS,
        Reader("comfyui", names=("diffusers", "original", "lora_transformer_", "lycoris_")),
    )
    PARTS: ClassVar = {
        "transformer": Part("diffusers:SD3Transformer2DModel", _marked),
        "vae": Part("diffusers:AutoencoderKL"),
        "text_encoder": Part("transformers:CLIPTextModelWithProjection"),
        "text_encoder_2": Part("transformers:CLIPTextModelWithProjection"),
        "text_encoder_3": Part("transformers:T5EncoderModel", large=True),
    }
    TOKENIZERS: ClassVar = {
        "text_encoder": folder.clip_tokenizer(),
        "text_encoder_2": folder.clip_tokenizer("tokenizer_2"),
        "text_encoder_3": folder.t5_tokenizer("tokenizer_3"),
    }
    blocks = ("transformer_blocks.*",)
    original_blocks = ("joint_blocks.*",)
    lines = (
        ModelLine("Stable Diffusion 3.5", ("sd3.5", "stable-diffusion-3.5"), ("lora_unet_joint_blocks_",), "SD3"),
        ModelLine("Stable Diffusion 3", ("sd3", "stable-diffusion-3"), ("lora_unet_joint_blocks_",), "SD3"),
    )
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    presets: ClassVar = flow.presets(_FEED_FORWARD, _MODULATION)
    ORIGINAL = _ORIGINAL

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        denoiser, vae = parts.config(path / "transformer" / "config.json"), parts.config(path / "vae" / "config.json")
        scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
        scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
        shrink = flow.cell_of(vae)
        width, pooled = int(denoiser["joint_attention_dim"]), int(denoiser["pooled_projection_dim"])
        newer, large = bool(denoiser.get("qk_norm")), int(denoiser["num_layers"]) > 24
        return flow.facts(
            cls.name,
            ("sd3.5-large" if large else "sd3.5-medium") if newer else "sd3",
            shrink,
            resolution=int(denoiser["sample_size"]) * shrink,
            max_tokens=T5_TOKENS,
            evidence=f"{cls.PIPELINE}, {denoiser['num_layers']} blocks, {flow.shift_text(scheduler)}",
            guidance=4.5,
            channels=int(denoiser["in_channels"]),
            text=(77 + T5_TOKENS, width, pooled),
            encoded=T5_TOKENS * width + 78 * pooled,  # CLIP's tokens are as wide as both pooled states
        )

    def reading(self, tokenizer: Any) -> tuple[object, ...]:
        return (tokenizer.pad_token_id,)

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        version = "3" if facts.variant == "sd3" else "3.5"
        return Labels(f"Stable Diffusion {version}", facts.variant, f"stable-diffusion-{version}-{_size(facts)}")

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        module, words = self.parts[encoder], self.tokenizers[encoder]
        captions = [p.caption for p in prompts]
        if encoder == "text_encoder_3":
            return clip_t5.t5(module, words, captions, T5_TOKENS)
        return clip_t5.clip(module, words, captions)

    def combine(self, texts: Sequence[Text]) -> Text:
        """CLIP's tokens beside each other, filled up to T5's width, then T5's."""
        first, second, t5 = texts
        assert first.pooled is not None and second.pooled is not None
        clip = torch.cat([first.tokens, second.tokens], -1)
        wide = pad(clip, (0, t5.tokens.shape[-1] - clip.shape[-1]))
        return Text(torch.cat([wide, t5.tokens], 1), torch.cat([first.pooled, second.pooled], -1))

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("transformer")
        weight, text = parts.float_dtype(denoiser), given.text
        assert text.pooled is not None
        output: Tensor = denoiser(
            hidden_states=noisy.to(weight), timestep=t * 1000,
            encoder_hidden_states=text.tokens.to(noisy.device, weight),
            pooled_projections=text.pooled.to(noisy.device, weight), return_dict=False,
        )[0]  # fmt: skip
        return output

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": text.tokens, "pooled_prompt_embeds": text.pooled, "guidance_scale": guidance,
            "negative_prompt_embeds": negative.tokens, "negative_pooled_prompt_embeds": negative.pooled,
        }  # fmt: skip


def _size(facts: BaseInfo) -> str:
    return "large" if facts.variant == "sd3.5-large" else "medium"
