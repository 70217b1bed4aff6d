"""Diffusion as one idea: x_t = alpha(t) * x0 + sigma(t) * noise, and what a model predicts of it.

Sources: DDPM arXiv:2006.11239; v-prediction arXiv:2202.00512; min-SNR arXiv:2303.09556; zero terminal SNR
arXiv:2305.08891; flow matching arXiv:2210.02747; its densities and shift arXiv:2403.03206.
Shapes: b is the batch, ... any further axes; t (b,) are times of the path, levels (b,) uniform in [0, 1).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "flow"]
BetaSchedule = Literal["linear", "scaled_linear"]
Density = Literal["uniform", "logit_normal"]


class NoiseSchedule(Protocol):
    """From clean to noise."""

    def at(self, levels: Tensor) -> Tensor:
        """Times (b,) at these shares of the path."""
        ...

    def sample_timesteps(self, levels: Tensor, cells: int) -> Tensor:
        """Times (b,) as training meets them, of chance's levels, for latents of so many cells."""
        ...

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha, sigma (b,), float32."""
        ...


@dataclass(frozen=True)
class DiscreteSchedule:
    """A DDPM path: t counts rows, int64. alpha, sigma (n,), float32."""

    alpha: Tensor
    sigma: Tensor
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def at(self, levels: Tensor) -> Tensor:
        return (levels * len(self.alpha)).long()

    def sample_timesteps(self, levels: Tensor, cells: int) -> Tensor:
        return self.at(levels)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._moved:
            self._moved[t.device] = self.alpha.to(t.device), self.sigma.to(t.device)
        alpha, sigma = self._moved[t.device]
        return alpha[t], sigma[t]


@dataclass(frozen=True)
class Shift:
    """How far times move towards noise: x -> m x / (1 + (m - 1) x), arXiv:2403.03206 eq. 23.

    m is `least`, or grows with the latents: log m runs from log least at `few` cells to log most at `many`.
    """

    least: float = 1.0
    most: float | None = None
    few: int = 0
    many: int = 0

    def factor(self, cells: int) -> float:
        if self.most is None:
            return self.least
        share = (cells - self.few) / (self.many - self.few)
        return math.exp(math.log(self.least) + share * (math.log(self.most) - math.log(self.least)))


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path of flow matching: alpha = 1 - t, sigma = t, and t is drawn in float64, kept in float32."""

    timestep_density: Density = "logit_normal"
    logit_mean: float = 0.0
    """Mean of logit(t) before the shift; above 0: towards noise."""
    logit_std: float = 1.0
    shift: Shift = Shift()

    def at(self, levels: Tensor) -> Tensor:
        return levels.float()

    def sample_timesteps(self, levels: Tensor, cells: int) -> Tensor:
        x = levels.double()
        if self.timestep_density == "logit_normal":
            inside = x.clamp(2**-32, 1 - 2**-32)  # chance may say 0, whose quantile is infinite
            x = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(inside))
        m = self.shift.factor(cells)
        return (m * x / (1 + (m - 1) * x)).float()

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t.float(), t.float()


@dataclass(frozen=True)
class Process:
    path: NoiseSchedule
    prediction: Prediction

    def at(self, levels: Tensor) -> Tensor:
        return self.path.at(levels)

    def sample_timesteps(self, levels: Tensor, cells: int) -> Tensor:
        return self.path.sample_timesteps(levels, cells)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, like x0."""
        alpha, sigma = self._scales(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should output at t, like x0."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - x0
        alpha, sigma = self._scales(t, x0)
        return alpha * noise - sigma * x0

    def split(self, xt: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (x0, noise) that the model's output implies: the inverse of add_noise and target."""
        a, s = self._scales(t, xt)
        if self.prediction == "epsilon":
            return (xt - s * output) / a, output
        if self.prediction == "flow":
            x0 = (xt - s * output) / (a + s)
            return x0, x0 + output
        return a * xt - s * output, s * xt + a * output

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio (b,); 0 at a zero-terminal row."""
        alpha, sigma = self.path.scales(t)
        return (alpha / sigma).square()

    def min_snr(self, t: Tensor, gamma: float) -> Tensor:
        """Loss weights (b,), arXiv:2303.09556 section 3.4: min(SNR, gamma) in x0-space, put into the target's space.

        An error in epsilon is an error in x0 over SNR, one in v an error in x0 over SNR + 1, one in the flow an error
        in x0 over 1 / sigma^2. With epsilon at SNR = 0 the limit of min(SNR, gamma) / SNR is 1.
        """
        snr = self.snr(t)
        if self.prediction == "epsilon":
            return torch.where(snr > 0, snr.clamp(max=gamma) / snr.clamp(min=1e-12), 1.0)
        if self.prediction == "flow":
            return snr.clamp(max=gamma) * self.path.scales(t)[1].square()
        return snr.clamp(max=gamma) / (snr + 1)

    def with_timestep_sampling(
        self, density: Density | None, logit_mean: float | None, logit_std: float | None, shift: float | None
    ) -> "Process":
        """A flow whose times are drawn otherwise; None leaves a choice as it is."""
        if not isinstance(self.path, RectifiedFlow):
            return self
        own = self.path
        return replace(self, path=RectifiedFlow(
            density or own.timestep_density, own.logit_mean if logit_mean is None else logit_mean,
            own.logit_std if logit_std is None else logit_std, own.shift if shift is None else Shift(shift),
        ))  # fmt: skip

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (s.view(-1, *[1] * (like.ndim - 1)).to(like.dtype) for s in self.path.scales(t))
        return alpha, sigma


def discrete(betas: Tensor, prediction: Prediction, zero_snr: bool = False) -> Process:
    """The DDPM path of a beta table (n,); with zero_snr rescaled to end in pure noise (arXiv:2305.08891, alg. 1)."""
    alpha = (1 - betas.double()).cumprod(0).sqrt()
    if zero_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return Process(DiscreteSchedule(alpha.float(), (1 - alpha.square()).sqrt().float()), prediction)


def betas(schedule: BetaSchedule, start: float, end: float, n: int) -> Tensor:
    """The two tables Stable Diffusion bases use, (n,), float64; scaled_linear is linear in the square root."""
    if schedule == "linear":
        return torch.linspace(start, end, n, dtype=torch.float64)
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64).square()
