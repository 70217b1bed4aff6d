"""The referee of generated pictures: which objects, on what, in which style. Made by `train_classifier.py` from renders
of its own; no picture that a base painted, and none of `data/examples`, was in its training.

Sources: residual blocks of arXiv:1512.03385; shapes are (b, channels, h, w).
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

FILE = Path(__file__).with_name("classifier.safetensors")
SIDE_PX = 64
HEADS = ("objects", "background", "ground", "style")


class Verdict(NamedTuple):
    objects: tuple[str, ...]
    """every object there is, the likeliest first: of a picture of two, both lead"""
    background: str
    """the named colour nearest to a plain background; means nothing of a pattern"""
    ground: str
    """plain, striped, checkered or gradient"""
    style: str
    """plain (as the emoji are), poster, blueprint or other"""
    scores: dict[str, float]
    """probability that the named object is shown, and of the named style"""

    @property
    def object(self) -> str:
        return self.objects[0]


class Network(nn.Module):
    """Pixels in [-1, 1] to the scores of each head."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.body = nn.Sequential(
            convolution(3, 32, stride=2), convolution(32, 64, stride=2), Block(64),
            convolution(64, 128, stride=2), Block(128), Block(128), convolution(128, 256, kernel=1),
        )  # fmt: skip
        self.heads = nn.Linear(512, sum(sizes))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        seen: Tensor = self.body(pixels)
        scores: Tensor = self.heads(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1))
        return scores.split(self.sizes, 1)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(channels, channels), convolution(channels, channels)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def convolution(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class Classifier:
    def __init__(self, network: nn.Module, names: Mapping[str, Sequence[str]]) -> None:
        self.network, self.names = network.eval(), names

    @torch.no_grad()
    def judge(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for start in range(0, len(pictures), 256):
            seen = self.network(pixels(pictures[start : start + 256]))
            objects, background, ground, style = (part.float() for part in seen)
            rows = zip(objects.sigmoid(), background, ground, style.softmax(1), strict=True)
            verdicts += [self._verdict(*row) for row in rows]
        return verdicts

    def _verdict(self, objects: Tensor, background: Tensor, ground: Tensor, style: Tensor) -> Verdict:
        names = self.names
        scores = dict(zip([*names["objects"], *names["style"]], torch.cat([objects, style]).tolist(), strict=True))
        return Verdict(
            tuple(names["objects"][i] for i in objects.argsort(descending=True).tolist()),
            names["background"][int(background.argmax())],
            names["ground"][int(ground.argmax())],
            names["style"][int(style.argmax())],
            scores,
        )


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """(b, 3, 64, 64) in [-1, 1]; larger pictures are averaged down."""
    return torch.stack([_fitted(picture) for picture in pictures])


def _fitted(picture: Image.Image) -> Tensor:
    how = Image.Resampling.BOX if picture.width > SIDE_PX else Image.Resampling.BICUBIC
    shown = np.asarray(picture.convert("RGB").resize((SIDE_PX, SIDE_PX), how), dtype=np.float32)
    return torch.from_numpy(shown).permute(2, 0, 1) / 127.5 - 1


@functools.cache
def load(file: Path = FILE) -> Classifier:
    with safe_open(file, "pt") as opened:
        names = json.loads(opened.metadata()["names"])
        weights = {key: opened.get_tensor(key).float() for key in opened.keys()}
    network = Network([len(names[head]) for head in HEADS])
    network.load_state_dict(weights)
    return Classifier(network, names)


def judge(pictures: Sequence[Image.Image]) -> list[Verdict]:
    """What each picture of any size shows, by the committed classifier."""
    return load().judge(pictures)
