"""Z-Image and Z-Image-Turbo: one stream of image and text tokens, the text read by Qwen3.

Source: diffusers' ZImagePipeline and ZImageTransformer2DModel, after github.com/Tongyi-MAI/Z-Image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from finetune.diffusion.process import Process
from finetune.families import autoencoder, flow, language, parts
from finetune.families.base import Conditioning, Facts, Moments, Original, Prompt, Published, Text
from finetune.families.parts import Parts

PIPELINE = "ZImagePipeline"
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
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


class ZImage:
    name: ClassVar[str] = "zimage"
    denoiser_name: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "transformer": {
            "attention": _ATTENTION,
            "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
            "all": (*_ATTENTION, *_FEED_FORWARD, "adaLN_modulation.0"),
        },
    }
    layout: ClassVar[Literal["kohya", "diffusers"]] = "diffusers"
    schedulers: ClassVar[Mapping[str, str]] = flow.SCHEDULERS

    def __init__(self, base: str, facts: Facts, parts: Parts, tokenizer: Any, scheduler_config: dict[str, Any]) -> None:
        self.base, self.facts, self.parts = base, facts, parts
        self.tokens, self.scheduler_config = tokenizer, scheduler_config
        self.process: Process = flow.process(scheduler_config)
        self.guidance = 1.0

    @classmethod
    def detect(cls, base: str) -> Facts | None:
        path = Path(base)
        if parts.pipeline_name(path) != PIPELINE:
            return None
        for part, file in WEIGHTS.items():
            parts.whole(path / part / file)
        parts.whole_vocabulary(path / "tokenizer", *language.VOCABULARY)
        return _facts(path)

    @classmethod
    def load(cls, base: str, facts: Facts, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        from diffusers import AutoencoderKL, ZImageTransformer2DModel
        from transformers import AutoModel

        path = Path(base)
        opened = Parts({
            "transformer": lambda: parts.from_pretrained(ZImageTransformer2DModel, path, "transformer", dtype),
            "vae": lambda: parts.from_pretrained(AutoencoderKL, path, "vae", torch.float32),
            "text_encoder": lambda: parts.from_pretrained(AutoModel, path, "text_encoder", dtype, text_bits),
        })  # fmt: skip
        scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
        return cls(base, facts, opened, language.tokenizer(path), scheduler)

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        from diffusers import ZImageTransformer2DModel

        with torch.device("meta"):
            config = parts.config(Path(base) / "transformer" / "config.json")
            return {"transformer": ZImageTransformer2DModel.from_config(config)}

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        return language.tokenizer(Path(base))

    @staticmethod
    def overhead(tokenizer: Any) -> int:
        return len(tokenizer(_form(tokenizer, "")).input_ids)

    @staticmethod
    def published(facts: Facts) -> Published:
        return Published("Z-Image", "zimage", facts.variant)

    @staticmethod
    def kohya_name(name: str) -> str:
        return "lora_" + name.replace(".", "_")

    @staticmethod
    def original(name: str) -> Original | None:
        return flow.original(name, _ORIGINAL)

    def fingerprint(self, part: str) -> str:
        also = [sorted(self.tokens.get_vocab().items()), _form(self.tokens, "")] if part == "text_encoder" else []
        return parts.fingerprint(self.parts[part], *also)

    def encode_images(self, pixels: Tensor) -> Moments:
        return autoencoder.encode(self.parts["vae"], pixels)

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        return autoencoder.latents(self.parts["vae"], moments, noise)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.parts["vae"], latents)

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        forms = [_form(self.tokens, p.caption) for p in prompts]
        return language.states(self.parts[encoder], self.tokens, forms, MAX_TOKENS, layer=-2)

    def combine(self, texts: Sequence[Text]) -> Text:
        return texts[0]

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        """The model counts time from noise to clean, and predicts the other way round."""
        denoiser = self.parts.called("transformer")
        weight = parts.float_dtype(denoiser)
        words = [one.to(noisy.device, weight) for one in _rows(given.text)]
        made: list[Tensor] = denoiser(list(noisy.to(weight).unsqueeze(2).unbind()), 1 - t, words, return_dict=False)[0]
        return -torch.stack(made).squeeze(2)

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        import diffusers

        pipeline = diffusers.ZImagePipeline(
            flow.scheduler(self.scheduler_config, scheduler), self.parts["vae"],
            self.parts.loaded().get("text_encoder"), self.tokens, self.parts["transformer"],
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def painting(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """Its pipeline counts guidance from 0, and takes each caption's states without filling."""
        return {
            "prompt_embeds": _rows(text), "negative_prompt_embeds": _rows(negative),
            "guidance_scale": max(0.0, guidance - 1),
        }  # fmt: skip

    def unpacked(self, painted: Tensor, width: int, height: int) -> Tensor:
        return painted

    def has_safety_checker(self) -> bool:
        return False


def _form(tokenizer: Any, caption: str) -> str:
    turn = [{"role": "user", "content": caption}]
    made: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    return made


def _rows(text: Text) -> list[Tensor]:
    """Each caption's own tokens."""
    assert text.mask is not None
    return [tokens[mask] for tokens, mask in zip(text.tokens, text.mask, strict=True)]


def _facts(path: Path) -> Facts:
    vae = parts.config(path / "vae" / "config.json")
    scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
    turbo = float(scheduler.get("shift", 1.0)) <= TURBO_SHIFT
    return Facts(
        family="zimage",
        variant="z-image-turbo" if turbo else "z-image",
        prediction="flow",
        zero_snr=True,
        resolution=1024,
        stride=flow.PATCH * 2 ** (len(vae["block_out_channels"]) - 1),
        max_tokens=MAX_TOKENS,
        prediction_known=True,
        evidence=f"{PIPELINE}, {flow.told(scheduler)}",
        distilled=f"few steps (Z-Image-Turbo: its scheduler's shift is {TURBO_SHIFT:g})" if turbo else "",
        guidance=1.0 if turbo else 5.0,
        channels=int(vae["latent_channels"]),
        cell=2 ** (len(vae["block_out_channels"]) - 1),
        text=(128, int(parts.config(path / "transformer" / "config.json")["cap_feat_dim"]), 0),
        masked=True,
    )
