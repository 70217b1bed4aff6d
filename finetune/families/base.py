"""What a model family is: the facts and verbs that training, sampling and export ask of it.

Shapes: b batch, H W pixels, h w latent cells, c latent channels, n tokens, d text width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from finetune.process import Prediction, Process


class Facts(NamedTuple):
    """What a base is, found without loading its weights."""

    family: str
    variant: str
    """which published line of the family: sd1, sd2"""
    prediction: Prediction
    zero_snr: bool
    """the beta table ends in pure noise"""
    resolution: int
    """px of a square the base was made for"""
    stride: int
    """px; bucket sides are multiples of it"""
    max_tokens: int
    prediction_known: bool
    """False: prediction is a guess until the weights are loaded and asked"""
    evidence: str
    """where prediction and family were read from, for the user"""


class Moments(NamedTuple):
    """The autoencoder's distribution over latents, each (b, c, h, w), float32, not yet scaled."""

    mean: Tensor
    logvar: Tensor


class Text(NamedTuple):
    """Encoded captions: tokens (b, n, d)."""

    tokens: Tensor


class Family(Protocol):
    name: ClassVar[str]
    denoiser_name: ClassVar[str]
    """what adapter files call the denoiser: unet, transformer"""
    presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]]
    """component -> name a recipe may use for adapter.targets -> module patterns"""

    base: str
    facts: Facts
    process: Process

    @classmethod
    def detect(cls, base: str) -> Facts | None:
        """None when the base is of another family. Raises BaseError when it is broken."""
        ...

    @classmethod
    def load(cls, base: str, facts: Facts, dtype: torch.dtype) -> Self:
        """All parts, on the CPU, the denoiser and text encoder in dtype, the autoencoder in float32."""
        ...

    @classmethod
    def skeleton(cls, base: str, facts: Facts) -> dict[str, nn.Module]:
        """component name -> module on the meta device, to count and to find targets in."""
        ...

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """file name of each trainable component -> module: unet, text_encoder."""
        ...

    @classmethod
    def tokenizer(cls, base: str) -> Any:
        """The base's transformers tokenizer, without its models."""
        ...

    def fingerprint(self, part: str) -> str:
        """A short hash of all that decides what a part (vae, text_encoder, unet) computes, weights as loaded."""
        ...

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the whole base as diffusers' pipeline folder; the modules keep their own dtypes."""
        ...

    def checkpoint_gradients(self) -> None:
        """Trade time for memory: recompute activations in the backward pass."""
        ...

    def to(self, device: torch.device, *parts: str) -> None:
        """Move parts (all when none is named)."""
        ...

    def encode_images(self, pixels: Tensor) -> Moments:
        """pixels (b, 3, H, W) in [-1, 1]."""
        ...

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        """A draw from the distribution, scaled for the denoiser. (b, c, h, w), float32."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents -> pixels (b, 3, H, W), about [-1, 1]."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Text: ...

    def predict(self, noisy: Tensor, t: Tensor, text: Text) -> Tensor:
        """noisy (b, c, h, w), t (b,) table rows -> the process's prediction, like noisy."""
        ...

    def compile(self) -> None:
        """torch.compile the denoiser for `predict`."""
        ...

    def pipeline(self, scheduler: str = "", safety: bool = False) -> Any:
        """diffusers' own pipeline around these very modules; scheduler: "" for the base's own.

        safety: with the base's safety checker, when it has one.
        """
        ...

    def has_safety_checker(self) -> bool: ...
