"""FLUX.2 klein: a flow transformer over the autoencoder's normalised patches, which reads three layers of Qwen3.

Source: diffusers' Flux2KleinPipeline and Flux2Transformer2DModel, after github.com/black-forest-labs/flux2.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from finetune.families import flow, folder, parts
from finetune.families.base import BaseInfo, Conditioning, Labels, ModelLine, Moments, Prompt, Text
from finetune.families.folder import Part, chat_form
from finetune.families.readers import DIFFUSERS, Reader

MAX_TOKENS = 512
LAYERS = (9, 18, 27)
"""of Qwen3, whose hidden states are read side by side"""
_SINGLE = ("attn.to_qkv_mlp_proj", "single_transformer_blocks.*.attn.to_out")
"""attention and feed-forward in one: what has either has both"""
_FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")
_MODULATION = ("double_stream_modulation_img.linear", "double_stream_modulation_txt.linear",
               "single_stream_modulation.linear")  # fmt: skip

_DOUBLE = "transformer_blocks.N."
_ORIGINAL: dict[str, str | tuple[str, int]] = {
    # as github.com/black-forest-labs/flux2 names them
    **{f"{_DOUBLE}attn.to_{x}": ("double_blocks.N.img_attn.qkv", i) for i, x in enumerate("qkv")},
    **{f"{_DOUBLE}attn.add_{x}_proj": ("double_blocks.N.txt_attn.qkv", i) for i, x in enumerate("qkv")},
    f"{_DOUBLE}attn.to_out.0": "double_blocks.N.img_attn.proj",
    f"{_DOUBLE}attn.to_add_out": "double_blocks.N.txt_attn.proj",
    f"{_DOUBLE}ff.linear_in": "double_blocks.N.img_mlp.0",
    f"{_DOUBLE}ff.linear_out": "double_blocks.N.img_mlp.2",
    f"{_DOUBLE}ff_context.linear_in": "double_blocks.N.txt_mlp.0",
    f"{_DOUBLE}ff_context.linear_out": "double_blocks.N.txt_mlp.2",
    "single_transformer_blocks.N.attn.to_qkv_mlp_proj": "single_blocks.N.linear1",
    "single_transformer_blocks.N.attn.to_out": "single_blocks.N.linear2",
    **{layer: layer.replace(".linear", ".lin") for layer in _MODULATION},
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
}
"""not norm_out.linear, whose halves diffusers has the other way round"""


class Flux2Klein(flow.FlowFolder):
    # The pipeline shifts by the picture's tokens and by the number of steps. At 200 steps that is the line which
    # the scheduler's base_shift and max_shift draw; with fewer it is more, to make up for a coarse solver.
    # Training takes no steps of a solver: it keeps to the line.
    name = "flux2"
    PIPELINE = "Flux2KleinPipeline"
    readers: ClassVar[tuple[Reader, ...]] = (
        DIFFUSERS,
        Reader(
            "comfyui",
            "0.33",
            ("diffusers", "original"),
            drops=tuple(f"transformer.{layer}" for layer in _MODULATION),
            but="`adapter.targets` other than `all`",
        ),
    )
    PARTS: ClassVar = {
        "transformer": Part("diffusers:Flux2Transformer2DModel"),
        "vae": Part("diffusers:AutoencoderKLFlux2"),
        "text_encoder": Part("transformers:Qwen3ForCausalLM", large=True),
    }
    TOKENIZERS: ClassVar = {"text_encoder": folder.language_tokenizer()}
    blocks = ("transformer_blocks.*", "single_transformer_blocks.*")
    original_blocks = ("double_blocks.*", "single_blocks.*")
    lines = (ModelLine("FLUX.2", ("flux2", "flux-2", "flux_2", "flux.2"), ("lora_unet_double_blocks_",)),)
    encoders = ("text_encoder",)
    presets: ClassVar = flow.presets(_FEED_FORWARD, _MODULATION, flow.attention(*_SINGLE))
    ORIGINAL = _ORIGINAL

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        vae = parts.config(path / "vae" / "config.json")
        distilled = bool(parts.config(path / "model_index.json").get("is_distilled"))
        scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
        return flow.facts(
            cls.name,
            "flux2-klein" if distilled else "flux2-klein-base",
            flow.cell_of(vae),
            max_tokens=MAX_TOKENS,
            evidence=f"{cls.PIPELINE}, {'distilled' if distilled else 'not distilled'}, {flow.shift_text(scheduler)}",
            distilled="few steps (FLUX.2 klein without -base: is_distilled in model_index.json)" if distilled else "",
            guidance=1.0 if distilled else 4.0,
            channels=int(vae["latent_channels"]),
            text=(MAX_TOKENS, int(parts.config(path / "transformer" / "config.json")["joint_attention_dim"]), 0),
        )

    def reading(self, tokenizer: Any) -> tuple[object, ...]:
        return _form(tokenizer, ""), LAYERS

    @classmethod
    def overhead(cls, tokenizer: Any) -> int:
        return len(tokenizer(_form(tokenizer, "")).input_ids)

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        return Labels("FLUX.2", "flux2_klein", "flux-2-klein")

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        """In the autoencoder's own cells, not in patches, so that tokens and shift are those of the other flows."""
        return _normalised(self.parts["vae"], moments.mean + (0.5 * moments.logvar).exp() * noise)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        vae: Any = self.parts["vae"]
        with torch.autocast(latents.device.type, enabled=False):
            pixels: Tensor = vae.decode(_raw(vae, latents.float())).sample
        return pixels

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        words = self.tokenizers[encoder]
        return _states(self.parts[encoder], words, [_form(words, p.caption) for p in prompts])

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("transformer")
        weight, (height, width), text = parts.float_dtype(denoiser), noisy.shape[-2:], given.text
        output: Tensor = denoiser(
            hidden_states=flow.pack_latents(noisy).to(weight), timestep=t,
            encoder_hidden_states=text.tokens.to(noisy.device, weight),
            txt_ids=_order(text.tokens.shape[1], noisy.device), img_ids=_places(height, width, noisy.device),
            return_dict=False,
        )[0]  # fmt: skip
        return flow.unpack_latents(output, height, width)

    def pipeline_options(self, safety: bool) -> dict[str, Any]:
        return {"is_distilled": bool(self.facts.distilled)}

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """Of a distilled base its pipeline ignores the guidance, and says so."""
        asked = {"prompt_embeds": text.tokens, "guidance_scale": guidance}
        return asked | ({"negative_prompt_embeds": negative.tokens} if guidance > 1 else {})

    def unpack_latents(self, painted: Tensor, width: int, height: int) -> Tensor:
        """Its pipeline has undone the normalisation."""
        return _normalised(self.parts["vae"], painted.float())


def _form(tokenizer: Any, caption: str) -> str:
    return chat_form(tokenizer, [{"role": "user", "content": caption}], enable_thinking=False)


def _states(module: nn.Module, tokenizer: Any, forms: Sequence[str]) -> Text:
    """(b, 512, 3d): each token's states of the three layers, padding and all, as the denoiser was trained."""
    encoder: Any = module
    read = tokenizer(list(forms), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    read = read.to(next(encoder.parameters()).device)
    # without the head, whose scores of every word are not asked for
    made = encoder.model(
        input_ids=read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True, use_cache=False
    ).hidden_states
    return Text(torch.cat([made[layer] for layer in LAYERS], -1))


def _normalised(vae: nn.Module, raw: Tensor) -> Tensor:
    """(b, c, h, w): by mean and deviation of each place in a patch."""
    mean, deviation = _statistics(vae, raw)
    return pixel_shuffle((pixel_unshuffle(raw, flow.PATCH) - mean) / deviation, flow.PATCH)


def _raw(vae: nn.Module, latents: Tensor) -> Tensor:
    """The inverse of `_normalised`."""
    mean, deviation = _statistics(vae, latents)
    return pixel_shuffle(pixel_unshuffle(latents, flow.PATCH) * deviation + mean, flow.PATCH)


def _statistics(vae: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (4c, 1, 1) of patches, which the autoencoder's batch norm has seen."""
    seen: Any = vae
    mean, variance = (one.to(like.device).view(-1, 1, 1) for one in (seen.bn.running_mean, seen.bn.running_var))
    return mean, (variance + seen.config.batch_norm_eps).sqrt()


def _order(tokens: int, device: torch.device) -> Tensor:
    """(n, 4): (0, 0, 0, which) of each token of the text."""
    return pad(torch.arange(tokens, device=device).float().unsqueeze(1), (3, 0))


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """(h/2 * w/2, 4): (0, row, column, 0) of each token of the picture."""
    return pad(flow.position_ids(height, width, device), (0, 1))
