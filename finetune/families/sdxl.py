"""Stable Diffusion XL: a larger UNet that reads two CLIP text encoders and is told how each picture was cut.

Sources: arXiv:2307.01952; the pipeline and block structure are diffusers' StableDiffusionXLPipeline. Adapters name the
UNet's modules as the original code (Stability-AI/generative-models, sgm) does, which every reader knows.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from finetune import tensors as weights
from finetune.diffusion.process import Process
from finetune.families import autoencoder, checkpoints, clip_t5, parts, unet
from finetune.families.base import Conditioning, Facts, Moments, Original, Prompt, Published, Text
from finetune.families.parts import Parts

PIPELINE = "StableDiffusionXLPipeline"
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

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


class StableDiffusionXL:
    name: ClassVar[str] = "sdxl"
    denoiser_name: ClassVar[str] = "unet"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "unet": unet.PRESETS,
        "text_encoder": unet.TEXT_PRESETS,
        "text_encoder_2": unet.TEXT_PRESETS,
    }
    layout: ClassVar[Literal["kohya", "diffusers"]] = "kohya"
    schedulers: ClassVar[Mapping[str, str]] = unet.SCHEDULERS

    def __init__(
        self, base: str, facts: Facts, parts: Parts, tokenizers: Mapping[str, Any], scheduler_config: dict[str, Any]
    ) -> None:
        self.base, self.facts, self.parts = base, facts, parts
        self.tokenizers, self.scheduler_config = tokenizers, scheduler_config
        self.process: Process = unet.process(scheduler_config, facts)
        self.guidance = 1.0

    @classmethod
    def detect(cls, base: str) -> Facts | None:
        path = Path(base)
        if path.is_file():
            if checkpoints.identify(weights.read_header(path)).variant != "sdxl":
                return None
            found = checkpoints.open_checkpoint(path)
            return _facts(checkpoints.config_folder("sdxl"), found.evidence)._replace(
                prediction=found.likely, zero_snr=found.zero_snr, resolution=found.resolution
            )
        if parts.pipeline_name(path) != PIPELINE:
            return None
        for part, file in WEIGHTS.items():
            parts.whole(path / part / file)
        for folder in TOKENIZERS.values():
            parts.whole_vocabulary(path / folder, *parts.CLIP_VOCABULARY)
        return _facts(path, f"{PIPELINE}, scheduler_config.json")

    @classmethod
    def load(cls, base: str, facts: Facts, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        path = Path(base)
        if path.is_file():
            found = checkpoints.load_checkpoint(checkpoints.open_checkpoint(path), dtype)
            made = {"unet": found.unet, "vae": found.vae, "text_encoder": _without_last(found.text_encoder),
                    "text_encoder_2": cast(nn.Module, found.text_encoder_2)}  # fmt: skip
            words = {"text_encoder": found.tokenizer, "text_encoder_2": found.tokenizer_2}
            loaders = {name: partial(_as_it_is, module) for name, module in made.items()}
            return cls(base, facts, Parts(loaders), words, found.scheduler_config)
        opened = Parts({
            "unet": lambda: parts.from_pretrained(UNet2DConditionModel, path, "unet", dtype),
            "vae": lambda: parts.from_pretrained(AutoencoderKL, path, "vae", torch.float32),
            "text_encoder": lambda: _without_last(parts.from_pretrained(CLIPTextModel, path, "text_encoder", dtype)),
            "text_encoder_2": lambda: parts.from_pretrained(CLIPTextModelWithProjection, path, "text_encoder_2", dtype),
        })  # fmt: skip
        tokenizers = {encoder: parts.clip_tokenizer(path, folder) for encoder, folder in TOKENIZERS.items()}
        return cls(base, facts, opened, tokenizers, parts.config(path / "scheduler" / "scheduler_config.json"))

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        folder = checkpoints.config_folder("sdxl") if Path(base).is_file() else Path(base)

        def config(part: str) -> dict[str, Any]:
            return parts.config(folder / part / "config.json")

        with torch.device("meta"):
            return {
                "unet": UNet2DConditionModel.from_config(config("unet")),
                "text_encoder": _without_last(CLIPTextModel(CLIPTextConfig.from_dict(config("text_encoder")))),
                "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config("text_encoder_2"))),
            }

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        if Path(base).is_file():
            return checkpoints.load_tokenizer("sdxl")
        return parts.clip_tokenizer(Path(base), "tokenizer")

    @staticmethod
    def overhead(tokenizer: Any) -> int:
        return int(tokenizer.num_special_tokens_to_add())

    @staticmethod
    def published(facts: Facts) -> Published:
        return Published("Stable Diffusion XL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base")

    @staticmethod
    def kohya_name(name: str) -> str:
        component, _, path = name.partition(".")
        prefix = _PREFIXES.get(component)
        return (prefix + path if prefix else "lora_unet_" + sgm_path(path)).replace(".", "_")

    @staticmethod
    def original(name: str) -> Original | None:
        return None

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
        """The last layer but one, before the final norm; of the second encoder the pooled state, too (T6)."""
        ids = clip_t5.ids(self.tokenizers[encoder], [p.caption for p in prompts], self.facts.max_tokens)
        module: Any = self.parts[encoder]
        made = module(ids.to(next(module.parameters()).device), output_hidden_states=True)
        return Text(made.hidden_states[-2], made.text_embeds if encoder == "text_encoder_2" else None)

    def combine(self, texts: Sequence[Text]) -> Text:
        first, second = texts
        return Text(torch.cat([first.tokens, second.tokens.to(first.tokens.device)], -1), second.pooled)

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("unet")
        weight, text = parts.float_dtype(denoiser), given.text
        assert text.pooled is not None
        told = {
            "text_embeds": text.pooled.to(noisy.device, weight),
            # in float32: bf16 would round 1023 to 1024 before the sinusoid (T5)
            "time_ids": (_uncut(noisy, self.facts) if given.size is None else given.size).float().to(noisy.device),
        }
        output: Tensor = denoiser(
            noisy.to(weight), t, text.tokens.to(noisy.device, weight), added_cond_kwargs=told, return_dict=False
        )[0]
        return output

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        import diffusers

        pipeline = diffusers.StableDiffusionXLPipeline(
            vae=self.parts["vae"], text_encoder=self.parts["text_encoder"], text_encoder_2=self.parts["text_encoder_2"],
            tokenizer=self.tokenizers["text_encoder"], tokenizer_2=self.tokenizers["text_encoder_2"],
            unet=self.parts["unet"], scheduler=unet.scheduler(self.scheduler_config, self.facts, scheduler),
            add_watermarker=False,
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


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


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


def _without_last(text: nn.Module) -> nn.Module:
    """The UNet reads the last layer but one, so nothing that the last one learns is ever seen."""
    encoder = getattr(text, "text_model", text).encoder
    parts.never_read(cast(Any, encoder).layers[-1])
    return text


def _uncut(noisy: Tensor, facts: Facts) -> Tensor:
    """The sizes of pictures as large as their latents; the factor is that of the autoencoder."""
    cell = facts.stride // 4
    height, width = noisy.shape[-2] * cell, noisy.shape[-1] * cell
    return torch.tensor([[height, width, 0, 0, height, width]]).repeat(len(noisy), 1)


def _facts(path: Path, evidence: str) -> Facts:
    denoiser, vae = parts.config(path / "unet" / "config.json"), parts.config(path / "vae" / "config.json")
    scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
    text = parts.config(path / "text_encoder" / "config.json")
    unet.refuse_other_inputs(denoiser, vae, path)
    shrink = 2 ** (len(vae["block_out_channels"]) - 1)
    return Facts(
        family="sdxl",
        variant="sdxl",
        prediction=unet.prediction(scheduler, path),
        prediction_known=True,
        zero_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        resolution=int(denoiser["sample_size"]) * shrink,
        stride=shrink * 2 ** (len(denoiser["block_out_channels"]) - 1),
        max_tokens=int(text.get("max_position_embeddings", 77)),
        evidence=evidence,
        distilled=_distilled(denoiser, scheduler),
        guidance=5.0,
        channels=int(vae["latent_channels"]),
        cell=shrink,
        text=(int(text.get("max_position_embeddings", 77)), int(denoiser["cross_attention_dim"]), _pooled(denoiser)),
    )


def _pooled(denoiser: Mapping[str, Any]) -> int:
    return int(denoiser["projection_class_embeddings_input_dim"]) - 6 * int(denoiser["addition_time_embed_dim"])


def _distilled(denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
    if denoiser.get("time_cond_proj_dim"):
        return "guidance (its UNet is told a guidance scale, as latent-consistency models are)"
    if scheduler.get("_class_name") == "LCMScheduler":
        return "few steps (its scheduler is LCM's)"
    if (scheduler.get("_class_name"), scheduler.get("timestep_spacing")) == (
        "EulerAncestralDiscreteScheduler", "trailing",
    ):  # fmt: skip
        return "few steps (its scheduler is SDXL Turbo's)"
    return ""
