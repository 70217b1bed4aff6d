"""Every random choice of training, as a function of (seed, sample, visit).

No generator is carried from step to step, so a killed run needs no RNG state, and the ranks of a
distributed run agree without talking. The choices of `Draw` are drawn in a row, which is closed: their order is what
old runs are made of. Every further choice has a generator of its own, by its name: `choice`.
"""

import hashlib
import random
from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """All that chance decides for one visit of one sample."""

    level: float
    """in [0, 1): where on the noise path"""
    place: float
    """in [0, 1): where along the cropped axis"""
    flip: bool
    drop_caption: bool
    noise_seed: int
    latent_seed: int

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32, CPU: the same on every device."""
        return normal(shape, self.noise_seed)

    def latent_noise(self, shape: tuple[int, ...]) -> Tensor:
        """For the draw from the autoencoder's distribution."""
        return normal(shape, self.latent_seed)


def draw(seed: int, sample: str, visit: int, caption_dropout: float, flip: bool) -> Draw:
    """What chance decides for the visit-th view of a sample."""
    chance = random.Random(key(seed, sample, visit))
    level, place = chance.random(), chance.random()
    mirrored, dropped = chance.random() < 0.5, chance.random() < caption_dropout
    return Draw(level, place, flip and mirrored, dropped, chance.getrandbits(63), chance.getrandbits(63))


def choice(seed: int, sample: str, visit: int, name: str) -> random.Random:
    """The generator of one choice about a visit that is no part of `Draw`, such as which caption is shown: its values
    depend on no other choice, nor on how many there are."""
    assert name not in Draw._fields and not name.isdecimal(), name
    return random.Random(key(seed, sample, visit, name))


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def permutation(n: int, *identity: int | str) -> list[int]:
    """0..n-1 in an order that is a function of the identity."""
    order = list(range(n))
    random.Random(key(*identity)).shuffle(order)
    return order


def key(*identity: int | str) -> int:
    """63 bits that are a function of the identity, the same in every process."""
    text = "\0".join(map(str, identity)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
