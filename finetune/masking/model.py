"""Masks by a segmentation model of transformers: CLIPSeg finds what a word names, SAM what is in the middle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from finetune import reading
from finetune.captioning.model import LONGEST_PX, loaded_part, located, refuse_pickled
from finetune.data.images import decode
from finetune.errors import BaseError, DataError
from finetune.machine import current_device
from finetune.masking.masker import MadeMask

MODEL_CLASSES = {"clipseg": ("CLIPSegForImageSegmentation", "CLIPSegProcessor"), "sam": ("SamModel", "SamProcessor")}
"""model type -> its classes"""
LIKELY = 0.4
"""CLIPSeg's probability from which a pixel is taken for what was named; it is seldom sure"""
_AGAIN = (
    "give the folder or hub id of a CLIPSeg or SAM model, such as CIDAS/clipseg-rd64-refined; `background` needs none"
)


class MaskModel:
    """What the model finds of each picture, hard-edged, in the picture's own size."""

    batch = 1

    def __init__(self, model: str, named: str) -> None:
        """model: a folder, or a hub id. named: what CLIPSeg looks for.

        Raises:
            BaseError: it is not there, is no such model, or cannot be loaded.
            DataError: CLIPSeg is not told what to look for, or SAM is.
        """
        folder = located(model, _AGAIN)
        self.type, self.named = _type_of(folder), named
        if self.type == "clipseg" and not named:
            raise DataError(
                "CLIPSeg needs to know what to find", "give `prompt`, or prepare the dataset with a class word"
            )
        network, processor = MODEL_CLASSES[self.type]
        self.processor: Any = loaded_part(processor, folder, hint=_AGAIN)
        self.model: Any = _loaded(folder, network)

    def check(self) -> None:
        """Loading it has shown that it can be used."""

    def __call__(self, files: Sequence[Path]) -> list[MadeMask]:
        return [self._of(decode.open_rgb(file)) for file in files]

    @torch.no_grad()
    def _of(self, picture: Image.Image) -> MadeMask:
        seen = picture.copy()
        seen.thumbnail((LONGEST_PX, LONGEST_PX))
        found = self._by_words(seen) if self.type == "clipseg" else self._in_the_middle(seen)
        whole = F.interpolate(found[None, None], (picture.height, picture.width), mode="bilinear")[0, 0]
        if not bool(whole.isfinite().all()):
            return MadeMask(None, "the model's output is not finite (NaN or infinity)")
        return MadeMask(Image.fromarray(((whole > 0).to(torch.uint8) * 255).cpu().numpy()))

    def _by_words(self, picture: Image.Image) -> Tensor:
        """(h, w), above 0 where it is likely."""
        inputs = self.processor(text=[self.named], images=[picture], return_tensors="pt", padding=True)
        logits = self.model(**inputs.to(self.model.device)).logits.float()
        found: Tensor = logits.reshape(logits.shape[-2:]).sigmoid() - LIKELY
        return found

    def _in_the_middle(self, picture: Image.Image) -> Tensor:
        """(h, w), above 0 inside of the best of the masks that SAM proposes."""
        middle = [[[picture.width / 2, picture.height / 2]]]
        inputs = self.processor(images=picture, input_points=middle, return_tensors="pt").to(self.model.device)
        sizes = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
        made = self.model(pixel_values=inputs["pixel_values"], input_points=inputs["input_points"].float())
        best = int(made.iou_scores.flatten().argmax())
        proposed = self.processor.image_processor.post_process_masks(made.pred_masks.cpu(), *sizes, binarize=False)
        found: Tensor = proposed[0].flatten(0, -3)[best].float()
        return found


def _loaded(folder: Path, network: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        model, info = loaded_part(
            network, folder, hint=_AGAIN, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise BaseError(f"{folder}: {len(missing)} of the model's tensors are missing, {missing[0]} first", _AGAIN)
    return model.to(current_device()).eval()


def _type_of(folder: Path) -> str:
    found = reading.read_json(folder / "config.json", BaseError, _AGAIN, finite=False).get("model_type")
    if found not in MODEL_CLASSES:
        raise BaseError(f"{folder} is not a supported segmentation model: its type is {found}", _AGAIN)
    refuse_pickled(folder)
    return str(found)
