"""FLUX.1 dev and schnell: a flow transformer over packed latents that reads T5 and CLIP's pooled state.

Source: diffusers' FluxPipeline and FluxTransformer2DModel, after github.com/black-forest-labs/flux.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from finetune.diffusion.process import Process
from finetune.families import autoencoder, clip_t5, flow, parts
from finetune.families.base import Conditioning, Facts, Moments, Original, Prompt, Published, Text
from finetune.families.parts import Parts

PIPELINE = "FluxPipeline"
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
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


class Flux:
    name: ClassVar[str] = "flux"
    denoiser_name: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
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
        parts.whole_vocabulary(path / "tokenizer", *parts.CLIP_VOCABULARY)
        parts.whole_vocabulary(path / "tokenizer_2", *clip_t5.T5_VOCABULARY)
        return _facts(path)

    @classmethod
    def load(cls, base: str, facts: Facts, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        from diffusers import AutoencoderKL, FluxTransformer2DModel
        from transformers import CLIPTextModel, T5EncoderModel

        path = Path(base)
        opened = Parts({
            "transformer": lambda: parts.from_pretrained(FluxTransformer2DModel, path, "transformer", dtype),
            "vae": lambda: parts.from_pretrained(AutoencoderKL, path, "vae", torch.float32),
            "text_encoder": lambda: parts.from_pretrained(CLIPTextModel, path, "text_encoder", dtype),
            "text_encoder_2": lambda: parts.from_pretrained(T5EncoderModel, path, "text_encoder_2", dtype, text_bits),
        })  # fmt: skip
        tokenizers = {
            "text_encoder": parts.clip_tokenizer(path, "tokenizer"),
            "text_encoder_2": clip_t5.t5_tokenizer(path, "tokenizer_2"),
        }
        return cls(base, facts, opened, tokenizers, parts.config(_scheduler_file(path)))

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        from diffusers import FluxTransformer2DModel

        with torch.device("meta"):
            config = parts.config(Path(base) / "transformer" / "config.json")
            return {"transformer": FluxTransformer2DModel.from_config(config)}

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        return clip_t5.t5_tokenizer(Path(base), "tokenizer_2")

    @staticmethod
    def overhead(tokenizer: Any) -> int:
        return int(tokenizer.num_special_tokens_to_add())

    @staticmethod
    def published(facts: Facts) -> Published:
        return Published("FLUX.1", "flux1", "flux-1-schnell" if facts.variant == "flux-schnell" else "flux-1-dev")

    @staticmethod
    def kohya_name(name: str) -> str:
        return "lora_" + name.replace(".", "_")

    @staticmethod
    def original(name: str) -> Original | None:
        return flow.original(name, _ORIGINAL)

    def fingerprint(self, part: str) -> str:
        words = self.tokenizers.get(part)
        also = [sorted(words.get_vocab().items()), self.facts.max_tokens] if words else []
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
            hidden_states=flow.packed(noisy).to(weight), timestep=t, guidance=told,
            pooled_projections=text.pooled.to(noisy.device, weight),
            encoder_hidden_states=text.tokens.to(noisy.device, weight),
            txt_ids=torch.zeros(text.tokens.shape[1], 3, device=noisy.device),
            img_ids=flow.places(height, width, noisy.device), return_dict=False,
        )[0]  # fmt: skip
        return flow.unpacked(output, height, width)

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        import diffusers

        loaded = self.parts.loaded()  # prompts come encoded, so that encoders may be gone
        pipeline = diffusers.FluxPipeline(
            vae=self.parts["vae"], text_encoder=loaded.get("text_encoder"),
            text_encoder_2=loaded.get("text_encoder_2"), tokenizer=self.tokenizers["text_encoder"],
            tokenizer_2=self.tokenizers["text_encoder_2"], transformer=self.parts["transformer"],
            scheduler=flow.scheduler(self.scheduler_config, scheduler),
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def painting(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        asked = {"prompt_embeds": text.tokens, "pooled_prompt_embeds": text.pooled}
        if self.facts.guided:
            return asked | {"guidance_scale": guidance}
        if guidance <= 1:
            return asked
        return asked | {
            "true_cfg_scale": guidance, "negative_prompt_embeds": negative.tokens,
            "negative_pooled_prompt_embeds": negative.pooled,
        }  # fmt: skip

    def unpacked(self, painted: Tensor, width: int, height: int) -> Tensor:
        cell = self.facts.stride // flow.PATCH
        return flow.unpacked(painted, height // cell, width // cell)

    def has_safety_checker(self) -> bool:
        return False


def _facts(path: Path) -> Facts:
    denoiser, vae = parts.config(path / "transformer" / "config.json"), parts.config(path / "vae" / "config.json")
    scheduler = parts.config(_scheduler_file(path))
    guided = bool(denoiser.get("guidance_embeds"))
    schnell = not guided and not scheduler.get("use_dynamic_shifting")
    return Facts(
        family="flux",
        variant="flux-schnell" if schnell else "flux-dev" if guided else "flux",
        prediction="flow",
        zero_snr=True,
        resolution=1024,
        stride=flow.PATCH * 2 ** (len(vae["block_out_channels"]) - 1),
        max_tokens=256 if schnell else 512,
        prediction_known=True,
        evidence=f"{PIPELINE}, {'with' if guided else 'without'} a guidance embedding, {flow.told(scheduler)}",
        distilled="few steps (FLUX.1 schnell)" if schnell else "",
        guided=guided,
        guidance=3.5 if guided else 1.0,
        channels=int(denoiser["in_channels"]) // flow.PATCH**2,
        cell=2 ** (len(vae["block_out_channels"]) - 1),
        text=(256 if schnell else 512, int(denoiser["joint_attention_dim"]), int(denoiser["pooled_projection_dim"])),
    )


def _scheduler_file(path: Path) -> Path:
    return path / "scheduler" / "scheduler_config.json"
