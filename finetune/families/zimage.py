"""Z-Image and Z-Image-Turbo: one stream of image and text tokens, the text read by Qwen3.

Source: diffusers' ZImagePipeline and ZImageTransformer2DModel, after github.com/Tongyi-MAI/Z-Image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from finetune.families import flow, folder, language, parts
from finetune.families.base import BaseInfo, Conditioning, Labels, ModelLine, Prompt, Text
from finetune.families.folder import Part, chat_form
from finetune.families.readers import DIFFUSERS, Reader

MAX_TOKENS = 512
TURBO_SHIFT = 3.0
"""of the distilled line's scheduler; the undistilled base has twice that"""
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")

_BLOCKS = ("layers.N.", "noise_refiner.N.", "context_refiner.N.")
_ORIGINAL: dict[str, str | tuple[str, int]] = {
    # as github.com/Tongyi-MAI/Z-Image and ComfyUI name them, where they differ from diffusers
    **{f"{b}attention.to_{x}": (f"{b}attention.qkv", i) for b in _BLOCKS for i, x in enumerate("qkv")},
    **{f"{b}attention.to_out.0": f"{b}attention.out" for b in _BLOCKS},
}


class ZImage(flow.FlowFolder):
    name = "zimage"
    PIPELINE = "ZImagePipeline"
    readers: ClassVar[tuple[Reader, ...]] = (
        DIFFUSERS,
        Reader("comfyui", "0.33", ("diffusers", "original", "diffusion_model.", "bare", "lycoris_")),
    )
    PARTS: ClassVar = {
        "transformer": Part("diffusers:ZImageTransformer2DModel"),
        "vae": Part("diffusers:AutoencoderKL"),
        "text_encoder": Part("transformers:AutoModel", large=True),
    }
    TOKENIZERS: ClassVar = {"text_encoder": folder.language_tokenizer()}
    blocks = ("noise_refiner.*", "context_refiner.*", "layers.*")
    lines = (ModelLine("Z-Image", ("zimage", "z-image")),)
    encoders = ("text_encoder",)
    presets: ClassVar = flow.presets(_FEED_FORWARD, ("adaLN_modulation.0",), _ATTENTION)
    ORIGINAL = _ORIGINAL

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        vae = parts.config(path / "vae" / "config.json")
        scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
        turbo = float(scheduler.get("shift", 1.0)) <= TURBO_SHIFT
        return flow.facts(
            cls.name,
            "z-image-turbo" if turbo else "z-image",
            flow.cell_of(vae),
            max_tokens=MAX_TOKENS,
            evidence=f"{cls.PIPELINE}, {flow.shift_text(scheduler)}",
            distilled=f"few steps (Z-Image-Turbo: its scheduler's shift is {TURBO_SHIFT:g})" if turbo else "",
            guidance=1.0 if turbo else 5.0,
            channels=int(vae["latent_channels"]),
            text=(128, int(parts.config(path / "transformer" / "config.json")["cap_feat_dim"]), 0),
            masked=True,
        )

    def reading(self, tokenizer: Any) -> tuple[object, ...]:
        return (_form(tokenizer, ""),)

    @classmethod
    def overhead(cls, tokenizer: Any) -> int:
        return len(tokenizer(_form(tokenizer, "")).input_ids)

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        return Labels("Z-Image", "zimage", facts.variant)

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        forms = [_form(self.tokenizers[encoder], p.caption) for p in prompts]
        return language.states(self.parts[encoder], self.tokenizers[encoder], forms, MAX_TOKENS, layer=-2)

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        """The model counts time from noise to clean, and predicts the other way round."""
        denoiser = self.parts.called("transformer")
        weight = parts.float_dtype(denoiser)
        words = [one.to(noisy.device, weight) for one in _rows(given.text)]
        made: list[Tensor] = denoiser(list(noisy.to(weight).unsqueeze(2).unbind()), 1 - t, words, return_dict=False)[0]
        return -torch.stack(made).squeeze(2)

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """Its pipeline counts guidance from 0, and takes each caption's states without filling."""
        return {
            "prompt_embeds": _rows(text), "negative_prompt_embeds": _rows(negative),
            "guidance_scale": max(0.0, guidance - 1),
        }  # fmt: skip


def _form(tokenizer: Any, caption: str) -> str:
    return chat_form(tokenizer, [{"role": "user", "content": caption}], enable_thinking=True)


def _rows(text: Text) -> list[Tensor]:
    """Each caption's own tokens."""
    assert text.mask is not None
    return [tokens[mask] for tokens, mask in zip(text.tokens, text.mask, strict=True)]
