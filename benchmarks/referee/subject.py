"""Is it this very product, or in this very style? One more question to the referee, answered from what its body sees.

A line through the 512 numbers that the committed classifier computes of a picture, fitted to renders of the subject and
of what it might be taken for: icons, other icons of its class, other brands, other subjects. No picture that a base
painted is in it, and none of the pictures that the subject is trained from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from referee import classifier
from referee.classifier import SIDE_PX
from referee.train_classifier import worn

WEIGHT_DECAY = 1e-3


class Question(NamedTuple):
    """weight (512,), bias, and the features' mean and deviation."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def seen(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Of each picture of any size, whether it shows the subject."""
        return [bool(score > 0) for score in self._scores(features(classifier.pixels(pictures)))]

    def _scores(self, found: Tensor) -> Tensor:
        return ((found - self.mean) / self.deviation) @ self.weight + self.bias


def learn(yes: Sequence[Image.Image], no: Sequence[Image.Image]) -> Question:
    """From pictures of the subject and of others, each worn in two ways, as a small model's pictures are."""
    shown, answers = classifier.pixels([*yes, *no]), torch.cat([torch.ones(len(yes)), torch.zeros(len(no))])
    found = torch.cat([features(shown), *(features(worn(shown, step)) for step in (1, 2))])
    asked = answers.repeat(3)
    mean, deviation = found.mean(0), found.std(0) + 1e-3
    scaled = (found - mean) / deviation
    weight, bias = torch.zeros(scaled.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")
    balance = torch.where(asked > 0, len(asked) / (2 * asked.sum()), len(asked) / (2 * (1 - asked).sum()))

    def loss() -> Tensor:
        optimizer.zero_grad()
        wrong = F.binary_cross_entropy_with_logits(scaled @ weight + bias, asked, balance)
        total = wrong + WEIGHT_DECAY * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)  # type: ignore[arg-type]
    return Question(weight.detach(), bias.detach(), mean, deviation)


@torch.no_grad()
def features(pixels: Tensor) -> Tensor:
    """(b, 512) of pictures (b, 3, 64, 64) in [-1, 1]: the mean and the largest of each channel of the body."""
    network, rows = classifier.load().network, []
    for some in pixels.split(256):
        seen = network.body(some)
        rows.append(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1))
    return torch.cat(rows)


def small(picture: Image.Image | np.ndarray) -> Image.Image:
    """As the referee looks at it, so that thousands take little memory."""
    whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return whole.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
