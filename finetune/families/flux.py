"""FLUX.1 dev and schnell: a flow transformer over packed latents that reads T5 and CLIP's pooled state.

Source: diffusers' FluxPipeline and FluxTransformer2DModel, after github.com/black-forest-labs/flux.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from finetune.families import clip_t5, flow, folder, parts
from finetune.families.base import BaseInfo, Conditioning, Labels, ModelLine, Prompt, Text
from finetune.families.folder import Part
from finetune.families.readers import DIFFUSERS, Reader

_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp",
                 "single_transformer_blocks.*.proj_out")  # fmt: skip
_MODULATION = ("norm1.linear", "norm1_context.linear", "norm.linear")

_DOUBLE, _SINGLE = "transformer_blocks.N.", "single_transformer_blocks.N."
_ORIGINAL: dict[str, str | tuple[str, int]] = {
    # as github.com/black-forest-labs/flux names them
    **{f"{_DOUBLE}attn.to_{x}": ("double_blocks.N.img_attn.qkv", i) for i, x in enumerate("qkv")},
    **{f"{_DOUBLE}attn.add_{x}_proj": ("double_blocks.N.txt_attn.qkv", i) for i, x in enumerate("qkv")},
    f"{_DOUBLE}attn.to_out.0": "double_blocks.N.img_attn.proj",
    f"{_DOUBLE}attn.to_add_out": "double_blocks.N.txt_attn.proj",
    f"{_DOUBLE}ff.net.0.proj": "double_blocks.N.img_mlp.0",
    f"{_DOUBLE}ff.net.2": "double_blocks.N.img_mlp.2",
    f"{_DOUBLE}ff_context.net.0.proj": "double_blocks.N.txt_mlp.0",
    f"{_DOUBLE}ff_context.net.2": "double_blocks.N.txt_mlp.2",
    f"{_DOUBLE}norm1.linear": "double_blocks.N.img_mod.lin",
    f"{_DOUBLE}norm1_context.linear": "double_blocks.N.txt_mod.lin",
    **{f"{_SINGLE}attn.to_{x}": ("single_blocks.N.linear1", i) for i, x in enumerate("qkv")},
    f"{_SINGLE}proj_mlp": ("single_blocks.N.linear1", 3),
    f"{_SINGLE}proj_out": "single_blocks.N.linear2",
    f"{_SINGLE}norm.linear": "single_blocks.N.modulation.lin",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
}
"""not norm_out.linear, whose halves diffusers has the other way round"""


class Flux(flow.FlowFolder):
    name = "flux"
    PIPELINE = "FluxPipeline"
    readers: ClassVar[tuple[Reader, ...]] = (
        DIFFUSERS,
        Reader("comfyui", names=("diffusers", "original", "kohya", "lora_transformer_", "lycoris_")),
        Reader("kohya", names=("original", "kohya")),
    )
    PARTS: ClassVar = {
        "transformer": Part("diffusers:FluxTransformer2DModel"),
        "vae": Part("diffusers:AutoencoderKL"),
        "text_encoder": Part("transformers:CLIPTextModel"),
        "text_encoder_2": Part("transformers:T5EncoderModel", large=True),
    }
    TOKENIZERS: ClassVar = {
        "text_encoder": folder.clip_tokenizer(),
        "text_encoder_2": folder.t5_tokenizer("tokenizer_2"),
    }
    blocks = ("transformer_blocks.*", "single_transformer_blocks.*")
    original_blocks = ("double_blocks.*", "single_blocks.*")
    lines = (ModelLine("FLUX.1", ("flux",), ("lora_unet_double_blocks_",)),)
    encoders = ("text_encoder", "text_encoder_2")
    presets: ClassVar = flow.presets(_FEED_FORWARD, _MODULATION)
    adapted = ("text_encoder",)  # by sd-scripts, unless it is told otherwise
    ORIGINAL = _ORIGINAL

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        denoiser, vae = parts.config(path / "transformer" / "config.json"), parts.config(path / "vae" / "config.json")
        scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
        guided = bool(denoiser.get("guidance_embeds"))
        schnell = not guided and not scheduler.get("use_dynamic_shifting")
        tokens = 256 if schnell else 512
        return flow.facts(
            cls.name,
            "flux-schnell" if schnell else "flux-dev" if guided else "flux",
            flow.cell_of(vae),
            max_tokens=tokens,
            evidence=f"{cls.PIPELINE}, guidance embedding: {'yes' if guided else 'no'}, {flow.shift_text(scheduler)}",
            distilled="few steps (FLUX.1 schnell)" if schnell else "",
            guided=guided,
            guidance=3.5 if guided else 1.0,
            channels=int(denoiser["in_channels"]) // flow.PATCH**2,
            text=(tokens, int(denoiser["joint_attention_dim"]), int(denoiser["pooled_projection_dim"])),
        )

    def reading(self, tokenizer: Any) -> tuple[object, ...]:
        return (self.facts.max_tokens,)

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        return Labels("FLUX.1", "flux1", "flux-1-schnell" if facts.variant == "flux-schnell" else "flux-1-dev")

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        module, words = self.parts[encoder], self.tokenizers[encoder]
        captions = [p.caption for p in prompts]
        if encoder == "text_encoder":
            return clip_t5.clip_pooled(module, words, captions)
        return clip_t5.t5(module, words, captions, self.facts.max_tokens)

    def combine(self, texts: Sequence[Text]) -> Text:
        clip, t5 = texts
        return Text(t5.tokens, clip.pooled)

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("transformer")
        weight, (height, width), text = parts.float_dtype(denoiser), noisy.shape[-2:], given.text
        assert text.pooled is not None
        guidance = self.guidance if given.guidance is None else given.guidance
        told = torch.full((len(noisy),), guidance, device=noisy.device) if self.facts.guided else None
        output: Tensor = denoiser(
            hidden_states=flow.pack_latents(noisy).to(weight), timestep=t, guidance=told,
            pooled_projections=text.pooled.to(noisy.device, weight),
            encoder_hidden_states=text.tokens.to(noisy.device, weight),
            txt_ids=torch.zeros(text.tokens.shape[1], 3, device=noisy.device),
            img_ids=flow.position_ids(height, width, noisy.device), return_dict=False,
        )[0]  # fmt: skip
        return flow.unpack_latents(output, height, width)

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        asked = {"prompt_embeds": text.tokens, "pooled_prompt_embeds": text.pooled}
        if self.facts.guided:
            return asked | {"guidance_scale": guidance}
        if guidance <= 1:
            return asked
        return asked | {
            "true_cfg_scale": guidance, "negative_prompt_embeds": negative.tokens,
            "negative_pooled_prompt_embeds": negative.pooled,
        }  # fmt: skip

    def unpack_latents(self, painted: Tensor, width: int, height: int) -> Tensor:
        return flow.unpack_latents(painted, height // self.facts.vae_scale_factor, width // self.facts.vae_scale_factor)
