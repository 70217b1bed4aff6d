"""Diffusion as one idea: x_t = alpha(t) * x0 + sigma(t) * noise, and what a model predicts of it.

Sources: DDPM arXiv:2006.11239; v-prediction arXiv:2202.00512; min-SNR arXiv:2303.09556; zero terminal SNR
arXiv:2305.08891. Shapes: b is the batch, ... any further axes; t (b,) counts rows of the beta table.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v"]
BetaSchedule = Literal["linear", "scaled_linear"]


@dataclass(frozen=True)
class Process:
    """alpha, sigma (n,): signal and noise level of each row, float32; rows run from clean to noise."""

    alpha: Tensor
    sigma: Tensor
    prediction: Prediction

    def __len__(self) -> int:
        return len(self.alpha)

    def to(self, device: torch.device) -> "Process":
        return Process(self.alpha.to(device), self.sigma.to(device), self.prediction)

    def rows(self, levels: Tensor) -> Tensor:
        """Uniform levels (b,) in [0, 1) -> rows (b,), int64, uniform over the table."""
        return (levels * len(self)).long()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, like x0."""
        return _beside(self.alpha, t, x0) * x0 + _beside(self.sigma, t, x0) * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should output at t, like x0."""
        if self.prediction == "epsilon":
            return noise
        return _beside(self.alpha, t, x0) * noise - _beside(self.sigma, t, x0) * x0

    def split(self, xt: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (x0, noise) that the model's output implies: the inverse of add_noise and target."""
        a, s = _beside(self.alpha, t, xt), _beside(self.sigma, t, xt)
        if self.prediction == "epsilon":
            return (xt - s * output) / a, output
        return a * xt - s * output, s * xt + a * output

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio (b,); 0 at a zero-terminal row."""
        return (self.alpha[t] / self.sigma[t]).square()

    def min_snr(self, t: Tensor, gamma: float) -> Tensor:
        """Loss weights (b,), arXiv:2303.09556 section 3.4: min(SNR, gamma) in x0-space, put into the target's space.

        An error in epsilon is an error in x0 over SNR, one in v an error in x0 over SNR + 1. With epsilon at SNR = 0
        the limit of min(SNR, gamma) / SNR is 1.
        """
        snr = self.snr(t)
        if self.prediction == "epsilon":
            return torch.where(snr > 0, snr.clamp(max=gamma) / snr.clamp(min=1e-12), 1.0)
        return snr.clamp(max=gamma) / (snr + 1)


def discrete(betas: Tensor, prediction: Prediction, zero_snr: bool = False) -> Process:
    """The DDPM path of a beta table (n,); with zero_snr rescaled to end in pure noise (arXiv:2305.08891, alg. 1)."""
    alpha = (1 - betas.double()).cumprod(0).sqrt()
    if zero_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return Process(alpha.float(), (1 - alpha.square()).sqrt().float(), prediction)


def betas(schedule: BetaSchedule, start: float, end: float, n: int) -> Tensor:
    """The two tables Stable Diffusion bases use, (n,), float64; scaled_linear is linear in the square root."""
    if schedule == "linear":
        return torch.linspace(start, end, n, dtype=torch.float64)
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64).square()


def _beside(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    return table[t].view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
