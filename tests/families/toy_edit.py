"""A small editing family in one file: its text encoder reads a control picture, and its denoiser the picture's latents.

Made like Qwen-Image-Edit, out of Qwen-Image's modules. Nothing else knows of it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from finetune.families import flow, parts
from finetune.families.base import BaseInfo, Conditioning, Prompt, Text
from finetune.families.qwen_image import QwenImage

SIDE, PATCH, MERGED = 56, 14, 2
"""px of the picture that the text encoder is shown, of a patch, and patches of a token's side"""


class ToyEdit(QwenImage):
    name = "toy_edit"
    PIPELINE = "ToyEditPipeline"

    @classmethod
    def facts_of(cls, path: Path) -> BaseInfo:
        return super().facts_of(path)._replace(family=cls.name, variant="toy-edit", resolution=128)

    @classmethod
    def pipeline_class(cls) -> Any:
        return diffusers.QwenImagePipeline

    def encode(self, encoder: str, prompts: Sequence[Prompt]) -> Text:
        """The caption's tokens, then each control picture's."""
        texts = super().encode(encoder, prompts)
        assert texts.mask is not None
        singles = []
        for tokens, mask, prompt in zip(texts.tokens, texts.mask, prompts, strict=True):
            seen = [self._seen(encoder, pixels).to(tokens) for pixels in prompt.pixels()]
            whole = torch.cat([tokens[mask], *seen])
            singles.append(Text(whole, mask=torch.ones(len(whole), dtype=torch.bool, device=whole.device)))
        return Text.stacked(singles)

    def _seen(self, encoder: str, pixels: Tensor) -> Tensor:
        """(n, d): what the encoder's eye makes of a picture (3, H, W)."""
        eye: Any = self.parts[encoder]
        grid = SIDE // PATCH
        square = interpolate(pixels[None], (SIDE, SIDE), mode="bilinear").expand(2, -1, -1, -1)  # two frames alike
        split = square.reshape(2, 3, grid // MERGED, MERGED, PATCH, grid // MERGED, MERGED, PATCH)
        patches = split.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(grid * grid, -1)
        weight = next(eye.model.visual.parameters())
        sizes = torch.tensor([[1, grid, grid]], device=weight.device)
        found: Tensor = eye.model.visual(patches.to(weight), sizes).pooler_output
        return found

    def predict(self, noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        """Tokens of the control pictures stand behind the picture's own."""
        denoiser = self.parts.called("transformer")
        weight, text = parts.float_dtype(denoiser), given.text
        assert text.mask is not None
        pictures = [noisy, *given.control]
        tokens = torch.cat([flow.pack_latents(one) for one in pictures], 1).to(weight)
        shapes = [[(1, one.shape[-2] // flow.PATCH, one.shape[-1] // flow.PATCH) for one in pictures]] * len(noisy)
        output: Tensor = denoiser(
            hidden_states=tokens, timestep=t, encoder_hidden_states_mask=text.mask.to(noisy.device),
            encoder_hidden_states=text.tokens.to(noisy.device, weight), img_shapes=shapes, return_dict=False,
        )[0]  # fmt: skip
        height, width = noisy.shape[-2:]
        return flow.unpack_latents(output[:, : height * width // flow.PATCH**2], height, width)


def toy_edit(qwen: Path) -> Path:
    """Make a base of Qwen-Image's modules one of this family."""
    index = qwen / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": ToyEdit.PIPELINE}))
    return qwen
