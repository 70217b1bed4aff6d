"""Stable Diffusion 3 and 3.5: a flow transformer that reads two CLIP encoders and T5.

Source: arXiv:2403.03206; diffusers' StableDiffusion3Pipeline and SD3Transformer2DModel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from finetune.diffusion.process import Process
from finetune.families import autoencoder, clip_t5, flow, parts
from finetune.families.base import Conditioning, Facts, Moments, Original, Prompt, Published, Text
from finetune.families.parts import Parts

PIPELINE = "StableDiffusion3Pipeline"
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "text_encoder_3": "model.safetensors",
}
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


class StableDiffusion3:
    name: ClassVar[str] = "sd3"
    denoiser_name: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "transformer": {
            "attention": flow.attention(),
            "attention+ff": flow.attention(*_FEED_FORWARD),
            "all": flow.attention(*_FEED_FORWARD, *_MODULATION),
        },
    }
    layout: ClassVar[Literal["kohya", "diffusers"]] = "diffusers"
    schedulers: ClassVar[Mapping[str, str]] = flow.SCHEDULERS

    def __init__(
        self, base: str, facts: Facts, parts: Parts, tokenizers: Mapping[str, Any], scheduler_config: dict[str, Any]
    ) -> None:
        self.base, self.facts, self.parts = base, facts, parts
        self.tokenizers, self.scheduler_config = tokenizers, scheduler_config
        self.process: Process = flow.process(scheduler_config)
        self.guidance = 1.0

    @classmethod
    def detect(cls, base: str) -> Facts | None:
        path = Path(base)
        if parts.pipeline_name(path) != PIPELINE:
            return None
        for part, file in WEIGHTS.items():
            parts.whole(path / part / file)
        for folder in ("tokenizer", "tokenizer_2"):
            parts.whole_vocabulary(path / folder, *parts.CLIP_VOCABULARY)
        parts.whole_vocabulary(path / "tokenizer_3", *clip_t5.T5_VOCABULARY)
        return _facts(path)

    @classmethod
    def load(cls, base: str, facts: Facts, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        from diffusers import AutoencoderKL, SD3Transformer2DModel
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        path = Path(base)

        def clip(part: str) -> nn.Module:
            return parts.from_pretrained(CLIPTextModelWithProjection, path, part, dtype)

        opened = Parts({
            "transformer": lambda: _marked(parts.from_pretrained(SD3Transformer2DModel, path, "transformer", dtype)),
            "vae": lambda: parts.from_pretrained(AutoencoderKL, path, "vae", torch.float32),
            "text_encoder": lambda: clip("text_encoder"),
            "text_encoder_2": lambda: clip("text_encoder_2"),
            "text_encoder_3": lambda: parts.from_pretrained(T5EncoderModel, path, "text_encoder_3", dtype, text_bits),
        })  # fmt: skip
        tokenizers = {
            "text_encoder": parts.clip_tokenizer(path, "tokenizer"),
            "text_encoder_2": parts.clip_tokenizer(path, "tokenizer_2"),
            "text_encoder_3": clip_t5.t5_tokenizer(path, "tokenizer_3"),
        }
        return cls(base, facts, opened, tokenizers, parts.config(_scheduler_file(path)))

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        from diffusers import SD3Transformer2DModel

        with torch.device("meta"):
            config = parts.config(Path(base) / "transformer" / "config.json")
            return {"transformer": _marked(SD3Transformer2DModel.from_config(config))}

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        return clip_t5.t5_tokenizer(Path(base), "tokenizer_3")

    @staticmethod
    def overhead(tokenizer: Any) -> int:
        return int(tokenizer.num_special_tokens_to_add())

    @staticmethod
    def published(facts: Facts) -> Published:
        version = "3" if facts.variant == "sd3" else "3.5"
        return Published(f"Stable Diffusion {version}", facts.variant, f"stable-diffusion-{version}-{_size(facts)}")

    @staticmethod
    def kohya_name(name: str) -> str:
        return "lora_" + name.replace(".", "_")

    @staticmethod
    def original(name: str) -> Original | None:
        return flow.original(name, _ORIGINAL)

    def fingerprint(self, part: str) -> str:
        words = self.tokenizers.get(part)
        also = [sorted(words.get_vocab().items()), words.pad_token_id] if words else []
        return parts.fingerprint(self.parts[part], *also)

    def encode_images(self, pixels: Tensor) -> Moments:
        return autoencoder.encode(self.parts["vae"], pixels)

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        return autoencoder.latents(self.parts["vae"], moments, noise)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.parts["vae"], latents)

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

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        import diffusers

        loaded = self.parts.loaded()  # prompts come encoded, so that encoders may be gone
        pipeline = diffusers.StableDiffusion3Pipeline(
            vae=self.parts["vae"], transformer=self.parts["transformer"],
            scheduler=flow.scheduler(self.scheduler_config, scheduler),
            text_encoder=loaded.get("text_encoder"), text_encoder_2=loaded.get("text_encoder_2"),
            text_encoder_3=loaded.get("text_encoder_3"), tokenizer=self.tokenizers["text_encoder"],
            tokenizer_2=self.tokenizers["text_encoder_2"], tokenizer_3=self.tokenizers["text_encoder_3"],
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def painting(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": text.tokens, "pooled_prompt_embeds": text.pooled, "guidance_scale": guidance,
            "negative_prompt_embeds": negative.tokens, "negative_pooled_prompt_embeds": negative.pooled,
        }  # fmt: skip

    def unpacked(self, painted: Tensor, width: int, height: int) -> Tensor:
        return painted

    def has_safety_checker(self) -> bool:
        return False


def _marked(transformer: nn.Module) -> nn.Module:
    """The last block's text tokens go nowhere, and so do their queries."""
    parts.never_read(cast(Any, transformer).transformer_blocks[-1].attn.add_q_proj)
    return transformer


def _size(facts: Facts) -> str:
    return "large" if facts.variant == "sd3.5-large" else "medium"


def _facts(path: Path) -> Facts:
    denoiser, vae = parts.config(path / "transformer" / "config.json"), parts.config(path / "vae" / "config.json")
    shrink = 2 ** (len(vae["block_out_channels"]) - 1)
    newer, large = bool(denoiser.get("qk_norm")), int(denoiser["num_layers"]) > 24
    return Facts(
        family="sd3",
        variant=("sd3.5-large" if large else "sd3.5-medium") if newer else "sd3",
        prediction="flow",
        zero_snr=True,
        resolution=int(denoiser["sample_size"]) * shrink,
        stride=flow.PATCH * shrink,
        max_tokens=T5_TOKENS,
        prediction_known=True,
        evidence=f"{PIPELINE}, {denoiser['num_layers']} blocks, {flow.told(parts.config(_scheduler_file(path)))}",
        guidance=4.5,
        channels=int(denoiser["in_channels"]),
        cell=shrink,
        text=(77 + T5_TOKENS, int(denoiser["joint_attention_dim"]), int(denoiser["pooled_projection_dim"])),
    )


def _scheduler_file(path: Path) -> Path:
    return path / "scheduler" / "scheduler_config.json"
