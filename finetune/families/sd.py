"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention to one CLIP text encoder.

Sources: arXiv:2112.10752; the pipeline and block structure are diffusers' StableDiffusionPipeline.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from finetune import tensors as weights
from finetune.diffusion.process import Process
from finetune.families import autoencoder, checkpoints, clip_t5, parts, unet
from finetune.families.base import Conditioning, Facts, Moments, Original, Prompt, Published, Text
from finetune.families.parts import Parts

Part = Literal["unet", "vae", "text_encoder"]
PIPELINE = "StableDiffusionPipeline"
WEIGHTS: dict[Part, str] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


class StableDiffusion:
    name: ClassVar[str] = "sd"
    denoiser_name: ClassVar[str] = "unet"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "unet": unet.PRESETS,
        "text_encoder": unet.TEXT_PRESETS,
    }
    layout: ClassVar[Literal["kohya", "diffusers"]] = "kohya"
    schedulers: ClassVar[Mapping[str, str]] = unet.SCHEDULERS

    def __init__(self, base: str, facts: Facts, parts: Parts, tokenizer: Any, scheduler_config: dict[str, Any]) -> None:
        self.base, self.facts, self.parts = base, facts, parts
        self.tokens, self.scheduler_config = tokenizer, scheduler_config
        self.process: Process = unet.process(scheduler_config, facts)
        self.guidance = 1.0

    @classmethod
    def detect(cls, base: str) -> Facts | None:
        path = Path(base)
        if path.is_file():
            if checkpoints.identify(weights.read_header(path)).variant not in ("sd1", "sd2"):
                return None
            found = checkpoints.open_checkpoint(path)
            folder = checkpoints.config_folder(found.variant)
            facts = _facts(folder, found.evidence)
            return facts._replace(
                prediction=found.likely, prediction_known=found.prediction is not None,
                zero_snr=found.zero_snr, resolution=found.resolution,
            )  # fmt: skip
        if parts.pipeline_name(path) != PIPELINE:
            return None
        for part, file in WEIGHTS.items():
            parts.whole(path / part / file)
        parts.whole_vocabulary(path / "tokenizer", *parts.CLIP_VOCABULARY)
        return _facts(path, f"{PIPELINE}, scheduler_config.json")

    @classmethod
    def load(cls, base: str, facts: Facts, dtype: torch.dtype, text_bits: int | None = None) -> Self:
        if Path(base).is_file():
            opened = checkpoints.open_checkpoint(Path(base))
            found = checkpoints.load_checkpoint(opened, dtype)
            if not facts.prediction_known:
                prediction = checkpoints.probe_prediction(found.unet)
                facts = facts._replace(
                    prediction=prediction, prediction_known=True, evidence=f"{facts.evidence}; a forward pass"
                )
            loaders = {"unet": lambda: found.unet, "vae": found.vae.float, "text_encoder": lambda: found.text_encoder}
            return cls(base, facts, Parts(loaders), found.tokenizer, found.scheduler_config)
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        path = Path(base)
        opened_parts = Parts({
            "unet": lambda: parts.from_pretrained(UNet2DConditionModel, path, "unet", dtype),
            "vae": lambda: parts.from_pretrained(AutoencoderKL, path, "vae", torch.float32),
            "text_encoder": lambda: parts.from_pretrained(CLIPTextModel, path, "text_encoder", dtype),
        })  # fmt: skip
        return cls(base, facts, opened_parts, cls.tokenizer(base), parts.config(_scheduler_file(path)))

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        path = _config_folder(base)
        with torch.device("meta"):
            denoiser = UNet2DConditionModel.from_config(parts.config(path / "unet" / "config.json"))
            text = CLIPTextModel(CLIPTextConfig.from_dict(parts.config(path / "text_encoder" / "config.json")))
        return {"unet": denoiser, "text_encoder": text}

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        if Path(base).is_file():
            return checkpoints.load_tokenizer(checkpoints.open_checkpoint(Path(base)).variant)
        return parts.clip_tokenizer(Path(base), "tokenizer")

    @staticmethod
    def overhead(tokenizer: Any) -> int:
        return int(tokenizer.num_special_tokens_to_add())

    @staticmethod
    def published(facts: Facts) -> Published:
        v = facts.prediction == "v"
        if facts.variant == "sd1":
            return Published("Stable Diffusion 1.x", "sd_v1" + ("_v" if v else ""), "stable-diffusion-v1")
        return Published(
            "Stable Diffusion 2.x", "sd_v2_v" if v else "sd_v2", f"stable-diffusion-v2-{'768-v' if v else '512'}"
        )

    @staticmethod
    def kohya_name(name: str) -> str:
        component, _, path = name.partition(".")
        return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component] + path.replace(".", "_")

    @staticmethod
    def original(name: str) -> Original | None:
        return None

    def fingerprint(self, part: str) -> str:
        also = [sorted(self.tokens.get_vocab().items())] if part == "text_encoder" else []
        return parts.fingerprint(self.parts[part], *also)

    def encode_images(self, pixels: Tensor) -> Moments:
        return autoencoder.encode(self.parts["vae"], pixels)

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        return autoencoder.latents(self.parts["vae"], moments, noise)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.parts["vae"], latents)

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        ids = clip_t5.ids(self.tokens, [p.caption for p in prompts], self.facts.max_tokens)
        module: Any = self.parts[encoder]
        return Text(module(ids.to(next(module.parameters()).device))[0])

    def combine(self, texts: Sequence[Text]) -> Text:
        return texts[0]

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("unet")
        weight = parts.float_dtype(denoiser)
        output: Tensor = denoiser(noisy.to(weight), t, given.text.tokens.to(noisy.device, weight), return_dict=False)[0]
        return output

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        import diffusers

        checker, extractor = self._safety() if safety else (None, None)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=self.parts["vae"], text_encoder=self.parts["text_encoder"], tokenizer=self.tokens,
            unet=self.parts["unet"], scheduler=unet.scheduler(self.scheduler_config, self.facts, scheduler),
            safety_checker=checker, feature_extractor=extractor, requires_safety_checker=checker is not None,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def painting(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": text.tokens, "negative_prompt_embeds": negative.tokens, "guidance_scale": guidance,
        }  # fmt: skip

    def unpacked(self, painted: Tensor, width: int, height: int) -> Tensor:
        return painted

    def has_safety_checker(self) -> bool:
        return (Path(self.base) / "safety_checker" / "config.json").is_file()

    def _safety(self) -> tuple[Any, Any]:
        if not self.has_safety_checker():
            return None, None
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        checker = StableDiffusionSafetyChecker.from_pretrained(self.base, subfolder="safety_checker")
        return checker, CLIPImageProcessor.from_pretrained(self.base, subfolder="feature_extractor")


def _facts(path: Path, evidence: str) -> Facts:
    denoiser, vae = parts.config(path / "unet" / "config.json"), parts.config(path / "vae" / "config.json")
    text, scheduler = parts.config(path / "text_encoder" / "config.json"), parts.config(_scheduler_file(path))
    unet.refuse_other_inputs(denoiser, vae, path)
    shrink = 2 ** (len(vae["block_out_channels"]) - 1)
    return Facts(
        family="sd",
        variant="sd2" if denoiser.get("use_linear_projection") else "sd1",
        prediction=unet.prediction(scheduler, path),
        prediction_known=True,
        zero_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        resolution=int(denoiser["sample_size"]) * shrink,
        stride=shrink * 2 ** (len(denoiser["block_out_channels"]) - 1),
        max_tokens=int(text.get("max_position_embeddings", 77)),
        evidence=evidence,
        channels=int(vae["latent_channels"]),
        cell=shrink,
        text=(int(text.get("max_position_embeddings", 77)), int(denoiser["cross_attention_dim"]), 0),
    )


def _config_folder(base: str) -> Path:
    path = Path(base)
    return checkpoints.config_folder(checkpoints.open_checkpoint(path).variant) if path.is_file() else path


def _scheduler_file(path: Path) -> Path:
    return path / "scheduler" / "scheduler_config.json"
