"""The transforms of torchvision that the peers' scripts use: the same arguments, the same results on Pillow's pictures.

Pictures come in as PIL images; from ToTensor on they are tensors (3, H, W) in [0, 1], float32.
"""

import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(Enum):
    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


class Compose:
    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, picture: Any) -> Any:
        for transform in self.transforms:
            picture = transform(picture)
        return picture


class Lambda:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, picture: Any) -> Any:
        return self.function(picture)


class Resize:
    """The shorter side becomes `size` px."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.filter = size, interpolation.value

    def __call__(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        short = min(width, height)
        return picture.resize((self.size * width // short, self.size * height // short), self.filter)


class CenterCrop:
    """A square of `size` px."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        return self.cut(picture, round((picture.width - self.size) / 2), round((picture.height - self.size) / 2))

    def cut(self, picture: Image.Image, left: int, top: int) -> Image.Image:
        return picture.crop((left, top, left + self.size, top + self.size))


class RandomCrop(CenterCrop):
    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = random.randint(0, picture.width - self.size), random.randint(0, picture.height - self.size)
        return self.cut(picture, left, top)


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < self.p else picture


class ToTensor:
    def __call__(self, picture: Image.Image | np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, picture: Tensor) -> Tensor:
        return (picture - self.mean) / self.std
