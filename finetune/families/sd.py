"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention to one CLIP text encoder.

Sources: arXiv:2112.10752; the pipeline and block structure are diffusers' StableDiffusionPipeline.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from finetune import reading
from finetune.errors import BaseError
from finetune.families import clip_t5, folder, parts, unet
from finetune.families.base import BaseInfo, Labels, ModelLine, Prompt, Text
from finetune.families.folder import Part


class StableDiffusion(unet.UNetFolder):
    name = "sd"
    PIPELINE = "StableDiffusionPipeline"
    PARTS: ClassVar = {
        "unet": Part("diffusers:UNet2DConditionModel"),
        "vae": Part("diffusers:AutoencoderKL"),
        "text_encoder": Part("transformers:CLIPTextModel"),
    }
    TOKENIZERS: ClassVar = {"text_encoder": folder.clip_tokenizer()}
    VARIANTS = ("sd1", "sd2")
    lines = (
        ModelLine("Stable Diffusion 1.x", ("sd_v1", "stable-diffusion-v1"), card="SD1"),
        ModelLine("Stable Diffusion 2.x", ("sd_v2", "stable-diffusion-v2"), card="SD2", v2=True),
    )
    encoders = ("text_encoder",)
    presets: ClassVar = {
        "unet": unet.PRESETS,
        "text_encoder": unet.TEXT_PRESETS,
    }

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        newer = parts.config(path / "unet" / "config.json").get("use_linear_projection")
        return unet.facts(path, cls.name, "sd2" if newer else "sd1", cls.PIPELINE)

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        line = cls.lines[facts.variant == "sd2"]
        named, other = line.starts[0], f"{line.starts[0]}_v"
        if facts.prediction == "v":
            named, other = other, named
        size = "" if not line.v2 else "-768-v" if facts.prediction == "v" else "-512"
        return Labels(line.title, named, line.starts[1] + size, unlike=(other,))

    @classmethod
    def kohya_name(cls, name: str) -> str:
        component, _, path = name.partition(".")
        return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component] + path.replace(".", "_")

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        ids = clip_t5.ids(self.tokenizers[encoder], [p.caption for p in prompts], self.facts.max_tokens)
        module: Any = self.parts[encoder]
        return Text(module(ids.to(next(module.parameters()).device))[0])

    def pipeline_options(self, safety: bool) -> dict[str, Any]:
        checker, extractor = self._safety() if safety else (None, None)
        return {
            "safety_checker": checker, "feature_extractor": extractor, "requires_safety_checker": checker is not None,
        }  # fmt: skip

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        return {
            "prompt_embeds": text.tokens, "negative_prompt_embeds": negative.tokens, "guidance_scale": guidance,
        }  # fmt: skip

    def has_safety_checker(self) -> bool:
        return reading.is_file(Path(self.base) / "safety_checker" / "config.json")

    def _safety(self) -> tuple[Any, Any]:
        if not self.has_safety_checker():
            return None, None
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        here = {"local_files_only": True}
        try:
            checker = StableDiffusionSafetyChecker.from_pretrained(
                self.base, subfolder="safety_checker", use_safetensors=True, **here
            )
            return checker, CLIPImageProcessor.from_pretrained(self.base, subfolder="feature_extractor", **here)
        except (OSError, ValueError, RuntimeError) as e:
            problem = f"the safety checker of {self.base} cannot be loaded: {str(e).splitlines()[0]}"
            raise BaseError(problem, "fetch the base again, with its safetensors files") from e
