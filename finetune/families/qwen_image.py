"""Qwen-Image: a flow transformer that reads Qwen2.5-VL, and an autoencoder made for videos.

Source: diffusers' QwenImagePipeline and QwenImageTransformer2DModel, after arXiv:2508.02324.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from finetune.diffusion.process import Process
from finetune.families import autoencoder, flow, language, parts
from finetune.families.base import Conditioning, Facts, Moments, Original, Prompt, Published, Text
from finetune.families.parts import Parts

PIPELINE = "QwenImagePipeline"
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
MAX_TOKENS = 1024
FORM = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""what the published model was trained to read; its first SKIPPED tokens are the same for every caption"""
SKIPPED = 34
_FEED_FORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
_MODULATION = ("img_mod.1", "txt_mod.1")


class QwenImage:
    name: ClassVar[str] = "qwen_image"
    denoiser_name: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "transformer": {
            "attention": flow.attention(),
            "attention+ff": flow.attention(*_FEED_FORWARD),
            "all": flow.attention(*_FEED_FORWARD, *_MODULATION),
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
        from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
        from transformers import Qwen2_5_VLForConditionalGeneration

        path = Path(base)
        text = Qwen2_5_VLForConditionalGeneration
        opened = Parts({
            "transformer": lambda: _marked(
                parts.from_pretrained(QwenImageTransformer2DModel, path, "transformer", dtype)
            ),
            "vae": lambda: parts.from_pretrained(AutoencoderKLQwenImage, path, "vae", torch.float32),
            "text_encoder": lambda: parts.from_pretrained(text, path, "text_encoder", dtype, text_bits),
        })  # fmt: skip
        scheduler = parts.config(path / "scheduler" / "scheduler_config.json")
        return cls(base, facts, opened, language.tokenizer(path), scheduler)

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        from diffusers import QwenImageTransformer2DModel

        with torch.device("meta"):
            config = parts.config(Path(base) / "transformer" / "config.json")
            return {"transformer": _marked(QwenImageTransformer2DModel.from_config(config))}

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        return language.tokenizer(Path(base))

    @staticmethod
    def overhead(tokenizer: Any) -> int:
        return len(tokenizer(FORM.format("")).input_ids) - SKIPPED

    @staticmethod
    def published(facts: Facts) -> Published:
        return Published("Qwen-Image", "qwen_image", "qwen-image")

    @staticmethod
    def kohya_name(name: str) -> str:
        return "lora_" + name.replace(".", "_")

    @staticmethod
    def original(name: str) -> Original | None:
        return None

    def fingerprint(self, part: str) -> str:
        also = [sorted(self.tokens.get_vocab().items()), FORM] if part == "text_encoder" else []
        return parts.fingerprint(self.parts[part], *also)

    def encode_images(self, pixels: Tensor) -> Moments:
        """A picture is a video of one frame."""
        moments = autoencoder.encode(self.parts["vae"], pixels.unsqueeze(2))
        return Moments(moments.mean.squeeze(2), moments.logvar.squeeze(2))

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        return autoencoder.latents(self.parts["vae"], moments, noise)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode_frame(self.parts["vae"], latents)

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        forms = [FORM.format(p.caption) for p in prompts]
        return language.states(self.parts[encoder], self.tokens, forms, MAX_TOKENS + SKIPPED, -1, SKIPPED)

    def combine(self, texts: Sequence[Text]) -> Text:
        return texts[0]

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("transformer")
        weight, (height, width), text = parts.float_dtype(denoiser), noisy.shape[-2:], given.text
        assert text.mask is not None
        mask = text.mask.to(noisy.device)
        shapes = [[(1, height // flow.PATCH, width // flow.PATCH)]] * len(noisy)
        output: Tensor = denoiser(
            hidden_states=flow.packed(noisy).to(weight), timestep=t, encoder_hidden_states_mask=mask,
            encoder_hidden_states=text.tokens.to(noisy.device, weight), img_shapes=shapes, return_dict=False,
        )[0]  # fmt: skip
        return flow.unpacked(output, height, width)

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        import diffusers

        pipeline = diffusers.QwenImagePipeline(
            flow.scheduler(self.scheduler_config, scheduler), self.parts["vae"],
            self.parts.loaded().get("text_encoder"), self.tokens, self.parts["transformer"],
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def painting(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        asked = {"prompt_embeds": text.tokens, "prompt_embeds_mask": text.mask, "true_cfg_scale": guidance}
        against = {"negative_prompt_embeds": negative.tokens, "negative_prompt_embeds_mask": negative.mask}
        return asked | (against if guidance > 1 else {})

    def unpacked(self, painted: Tensor, width: int, height: int) -> Tensor:
        cell = self.facts.stride // flow.PATCH
        return flow.unpacked(painted, height // cell, width // cell)

    def has_safety_checker(self) -> bool:
        return False


def _marked(transformer: nn.Module) -> nn.Module:
    """The last block's text tokens go nowhere."""
    last = cast(Any, transformer).transformer_blocks[-1]
    for layer in (last.attn.add_q_proj, last.attn.to_add_out, last.txt_mlp):
        parts.never_read(layer)
    return transformer


def _facts(path: Path) -> Facts:
    vae = parts.config(path / "vae" / "config.json")
    return Facts(
        family="qwen_image",
        variant="qwen-image",
        prediction="flow",
        zero_snr=True,
        resolution=1024,
        stride=flow.PATCH * 2 ** len(vae["temperal_downsample"]),
        max_tokens=MAX_TOKENS,
        prediction_known=True,
        evidence=f"{PIPELINE}, {flow.told(parts.config(path / 'scheduler' / 'scheduler_config.json'))}",
        guidance=4.0,
        channels=int(vae["z_dim"]),
        cell=2 ** len(vae["temperal_downsample"]),
        text=(128, int(parts.config(path / "transformer" / "config.json")["joint_attention_dim"]), 0),
        masked=True,
    )
