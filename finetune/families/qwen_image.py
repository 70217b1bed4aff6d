"""Qwen-Image: a flow transformer that reads Qwen2.5-VL, and an autoencoder made for videos.

Source: diffusers' QwenImagePipeline and QwenImageTransformer2DModel, after arXiv:2508.02324.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from finetune.families import autoencoder, flow, folder, language, parts
from finetune.families.base import BaseInfo, Conditioning, Labels, ModelLine, Moments, Prompt, Text
from finetune.families.folder import Part
from finetune.families.readers import DIFFUSERS, Reader

MAX_TOKENS = 1024
FORM = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""what the published model was trained to read; its first SKIPPED tokens are the same for every caption"""
SKIPPED = 34
_FEED_FORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
_MODULATION = ("img_mod.1", "txt_mod.1")


def _marked(transformer: nn.Module) -> nn.Module:
    """The last block's text tokens go nowhere."""
    last = cast(Any, transformer).transformer_blocks[-1]
    for layer in (last.attn.add_q_proj, last.attn.to_add_out, last.txt_mlp):
        parts.never_read(layer)
    return transformer


class QwenImage(flow.FlowFolder):
    name = "qwen_image"
    PIPELINE = "QwenImagePipeline"
    readers: ClassVar[tuple[Reader, ...]] = (
        DIFFUSERS,
        Reader("comfyui", names=("diffusers", "original", "diffusion_model.", "bare", "lora_unet_", "lycoris_")),
    )
    PARTS: ClassVar = {
        "transformer": Part("diffusers:QwenImageTransformer2DModel", _marked),
        "vae": Part("diffusers:AutoencoderKLQwenImage"),
        "text_encoder": Part("transformers:Qwen2_5_VLForConditionalGeneration", large=True),
    }
    TOKENIZERS: ClassVar = {"text_encoder": folder.language_tokenizer()}
    blocks = ("transformer_blocks.*",)
    lines = (ModelLine("Qwen-Image", ("qwen",)),)
    encoders = ("text_encoder",)
    presets: ClassVar = flow.presets(_FEED_FORWARD, _MODULATION)

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        vae = parts.config(path / "vae" / "config.json")
        return flow.facts(
            cls.name,
            "qwen-image",
            2 ** len(vae["temperal_downsample"]),
            max_tokens=MAX_TOKENS,
            evidence=f"{cls.PIPELINE}, {flow.shift_text(parts.config(path / 'scheduler' / 'scheduler_config.json'))}",
            guidance=4.0,
            channels=int(vae["z_dim"]),
            text=(128, int(parts.config(path / "transformer" / "config.json")["joint_attention_dim"]), 0),
            masked=True,
        )

    def reading(self, tokenizer: Any) -> tuple[object, ...]:
        return (FORM,)

    @classmethod
    def overhead(cls, tokenizer: Any) -> int:
        return len(tokenizer(FORM.format("")).input_ids) - SKIPPED

    @classmethod
    def published(cls, facts: BaseInfo) -> Labels:
        return Labels("Qwen-Image", "qwen_image", "qwen-image")

    def encode_images(self, pixels: Tensor) -> Moments:
        """A picture is a video of one frame."""
        moments = autoencoder.encode(self.parts["vae"], pixels.unsqueeze(2))
        return Moments(moments.mean.squeeze(2), moments.logvar.squeeze(2))

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode_frame(self.parts["vae"], latents)

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        forms = [FORM.format(p.caption) for p in prompts]
        return language.states(self.parts[encoder], self.tokenizers[encoder], forms, MAX_TOKENS + SKIPPED, -1, SKIPPED)

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        denoiser = self.parts.called("transformer")
        weight, (height, width), text = parts.float_dtype(denoiser), noisy.shape[-2:], given.text
        assert text.mask is not None
        mask = text.mask.to(noisy.device)
        shapes = [[(1, height // flow.PATCH, width // flow.PATCH)]] * len(noisy)
        output: Tensor = denoiser(
            hidden_states=flow.pack_latents(noisy).to(weight), timestep=t, encoder_hidden_states_mask=mask,
            encoder_hidden_states=text.tokens.to(noisy.device, weight), img_shapes=shapes, return_dict=False,
        )[0]  # fmt: skip
        return flow.unpack_latents(output, height, width)

    def pipeline_inputs(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        asked = {"prompt_embeds": text.tokens, "prompt_embeds_mask": text.mask, "true_cfg_scale": guidance}
        against = {"negative_prompt_embeds": negative.tokens, "negative_prompt_embeds_mask": negative.mask}
        return asked | (against if guidance > 1 else {})

    def unpack_latents(self, painted: Tensor, width: int, height: int) -> Tensor:
        return flow.unpack_latents(painted, height // self.facts.vae_scale_factor, width // self.facts.vae_scale_factor)
