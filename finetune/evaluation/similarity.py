"""How alike pictures are, and how well captions fit them, in the eyes of CLIP or, for pictures only, DINOv2.

Measures: DINO, CLIP-I and CLIP-T of arXiv:2208.12242 section 5. Shapes: n pictures or captions, d features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from finetune import reading
from finetune import tensors as weights
from finetune.errors import BaseError
from finetune.families import sizes
from finetune.families.parts import without_bars

ENCODERS = {"clip": "CLIPModel", "dinov2": "Dinov2Model"}
"""model_type of config.json -> class of transformers"""
BATCH = 32
"""pictures or captions at a time"""
STYLE_DEPTH = 0.75
"""of the layer whose patches show a style, as a share of the encoder's depth"""
_MOST_PX = 4096
"""on a side of what an encoder sees: known ones see up to 518"""
_VOCABULARY = ("vocab.json", "merges.txt")
_AGAIN = "fetch the model again, whole"

SizePx = tuple[int, int]
_Item = TypeVar("_Item")


class ImageTransform(NamedTuple):
    """How an encoder wants its pictures, by its preprocessor_config.json. Sizes are (width, height) in pixels."""

    resized: int | SizePx | None
    """to this shortest edge, or to this size, or not"""
    resample: Image.Resampling
    crop: SizePx | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, said: dict[str, Any]) -> Self:
        """What old files leave out is what CLIP and DINOv2 have in common.

        Raises:
            LookupError, TypeError, ValueError: something is missing or not understood.
        """
        crop = _size(said["crop_size"]) if said.get("do_center_crop", True) else None
        normal = said.get("do_normalize", True)
        return cls(
            resized=_size(said["size"]) if said.get("do_resize", True) else None,
            resample=Image.Resampling(said.get("resample", Image.Resampling.BICUBIC)),
            crop=(crop, crop) if isinstance(crop, int) else crop,
            scale=float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0,
            mean=tuple(map(float, said["image_mean"])) if normal else (0.0,),
            std=tuple(map(float, said["image_std"])) if normal else (1.0,),
        )

    def through(self, picture: Image.Image) -> Tensor:
        """(3, H, W) float32, bit for bit what transformers' processor gives with Pillow; white behind transparency."""
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        picture = picture.convert("RGB")
        if isinstance(self.resized, int):
            shortest = min(picture.size)
            width, height = (int(self.resized * edge / shortest) for edge in picture.size)
            picture = picture.resize((width, height), self.resample)
        elif self.resized:
            picture = picture.resize(self.resized, self.resample)
        if self.crop:
            left, top = ((has - wanted) // 2 for has, wanted in zip(picture.size, self.crop, strict=True))
            picture = picture.crop((left, top, left + self.crop[0], top + self.crop[1]))
        scaled = (np.asarray(picture, dtype=np.float64) * self.scale).astype(np.float32)
        mean, std = (np.asarray(channels, dtype=np.float32) for channels in (self.mean, self.std))
        return torch.from_numpy((scaled - mean) / std).permute(2, 0, 1)


@dataclass(frozen=True)
class FeatureExtractor:
    """An encoder with what it needs. It computes where its weights are; embeddings come back to the CPU."""

    encoder: Any
    lens: ImageTransform
    tokenizer: Any
    """None: sees pictures only"""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """In float32, from a folder in transformers' layout; the network is never asked.

        Raises:
            BaseError: no such model, files missing or damaged, pickled weights only, or not exactly the right tensors.
        """
        kind = _json(folder / "config.json").get("model_type")
        if kind not in ENCODERS:
            known = ", ".join(ENCODERS)
            raise BaseError(f"{folder}: its model_type, {kind!r}, is not one of {known}", "give a CLIP or a DINOv2")
        lens = _lens(folder / "preprocessor_config.json")
        return cls(_encoder(folder, ENCODERS[kind]), lens, _tokenizer(folder) if kind == "clip" else None)

    @torch.no_grad()
    def of_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d) float32, rows of unit length: what CLIP projects, or DINOv2's class token."""

        def embed(some: Sequence[Image.Image]) -> Any:
            pixels = torch.stack([self.lens.through(picture) for picture in some]).to(self.encoder.device)
            if self.tokenizer is None:
                return self.encoder(pixels).pooler_output
            # by its parts: what get_image_features gives differs between versions of transformers
            return self.encoder.visual_projection(self.encoder.vision_model(pixels).pooler_output)

        return _unit_rows(embed, pictures)

    @torch.no_grad()
    def style_of_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d * d) float32, rows of unit length: how the features of a picture's patches vary together, wherever they
        lie, as in style transfer (Gram matrices of arXiv:1508.06576, of centred features; from a layer at three
        quarters of the depth). Of the measures tried this one told styles apart best (docs/log.md)."""

        def embed(some: Sequence[Image.Image]) -> Any:
            pixels = torch.stack([self.lens.through(picture) for picture in some]).to(self.encoder.device)
            tower = self.encoder if self.tokenizer is None else self.encoder.vision_model
            layers = tower(pixels, output_hidden_states=True).hidden_states
            patches = layers[round(STYLE_DEPTH * (len(layers) - 1))][:, 1:]
            patches = patches - patches.mean(1, keepdim=True)
            return (patches.transpose(1, 2) @ patches).flatten(1)

        return _unit_rows(embed, pictures)

    @torch.no_grad()
    def of_captions(self, captions: Sequence[str]) -> Tensor:
        """(n, d) float32, rows of unit length; a caption longer than CLIP reads is cut, as always with CLIP.

        Raises:
            BaseError: the encoder sees pictures only.
        """
        if self.tokenizer is None:
            raise BaseError("these eyes see pictures only: they cannot judge captions", "give a CLIP")
        room = self.encoder.config.text_config.max_position_embeddings

        def embed(some: Sequence[str]) -> Any:
            tokens = self.tokenizer(list(some), padding=True, truncation=True, max_length=room, return_tensors="pt")
            return self.encoder.text_projection(self.encoder.text_model(**tokens.to(self.encoder.device)).pooler_output)

        return _unit_rows(embed, captions)


def pairwise(a: Tensor) -> float:
    """Mean cosine over the pairs of one set: a (n, d) of unit rows, n at least 2."""
    n, a = len(a), a.double()
    return float(a.sum(0).square().sum() - a.square().sum()) / (n * (n - 1))


def cross(a: Tensor, b: Tensor) -> float:
    """Mean cosine of all rows of a (n, d) with all of b (m, d): DINO or CLIP-I, of real and generated pictures."""
    return float(a.double().mean(0) @ b.double().mean(0))


def clip_t(pictures: Tensor, captions: Tensor) -> float:
    """Mean cosine of each picture and the caption in its row, (n, d) both: CLIP-T."""
    # stacked, because a product would deal one caption out to all pictures
    return float(torch.stack((pictures, captions)).double().prod(0).sum(1).mean())


def diversity(a: Tensor) -> float:
    """How unlike one another the pictures of a set are: 0 when all are the same."""
    return 1 - pairwise(a)


def _unit_rows(embed: Callable[[Sequence[_Item]], Any], items: Sequence[_Item]) -> Tensor:
    found = [embed(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
    return F.normalize(torch.cat(found).cpu())


def _size(said: object) -> int | SizePx:
    match said:
        case int(edge):
            return edge
        case {"shortest_edge": int(edge), **rest} if not rest:
            return edge
        case {"height": int(height), "width": int(width), **rest} if not rest:
            return width, height
    raise ValueError(f"size {said!r}")


def _lens(file: Path) -> ImageTransform:
    said = _json(file)
    sizes.check_numbers(said, str(file), _MOST_PX)
    try:
        lens = ImageTransform.of(said)
    except (LookupError, TypeError, ValueError) as e:
        raise BaseError(f"{file}: what becomes of a picture is not said, or not understood: {e}", _AGAIN) from e
    if not lens.crop and not isinstance(lens.resized, tuple):
        raise BaseError(f"{file}: pictures would differ in size", "set do_center_crop, and crop_size")
    return lens


def _encoder(folder: Path, name: str) -> Any:
    file = folder / "model.safetensors"
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in weights.PICKLED)
    if pickled and not reading.is_file(file):
        problem = f"{folder} holds pickled weights only ({pickled[0]}), which can run code when opened: refused"
        raise BaseError(problem, "take the safetensors version of this model")
    sizes.check_config(folder / "config.json", [weights.read_header(file)])
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    encoder, info = _from_pretrained(name, folder, **options)
    for fault in ("missing", "unexpected"):
        if names := info[f"{fault}_keys"]:
            raise BaseError(f"{folder} is no {name}: {len(names)} tensors {fault}, {min(names)} first", _AGAIN)
    return encoder


def _tokenizer(folder: Path) -> Any:
    # without a vocabulary transformers makes an empty tokenizer, to which all captions are the same
    if not reading.is_file(folder / "tokenizer.json") and not all(reading.is_file(folder / f) for f in _VOCABULARY):
        raise BaseError(f"no {' and '.join(_VOCABULARY)} in {folder}", _AGAIN)
    return _from_pretrained("CLIPTokenizer", folder)


def _from_pretrained(name: str, folder: Path, **options: Any) -> Any:
    import transformers

    try:
        with without_bars():
            return getattr(transformers, name).from_pretrained(str(folder), local_files_only=True, **options)
    except (RuntimeError, ValueError, OSError) as e:
        raise BaseError(f"{folder} cannot be loaded as a {name}: {str(e).splitlines()[0]}", _AGAIN) from e


def _json(file: Path) -> dict[str, Any]:
    hint = "give the folder of a CLIP or a DINOv2 in transformers' layout"
    return reading.read_json(file, BaseError, hint, finite=False)
