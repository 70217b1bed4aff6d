"""What generated pictures are worth: likeness, prompt, drift, diversity and memorisation, each with its interval.

All take features as `similarity.FeatureExtractor` gives them: rows of unit length, (n, d) of n pictures; `adapted` and
`base` are painted at the same prompts and seeds, row by row; `real` are the training pictures. Intervals: percentile
bootstrap over pictures, at a fixed seed.

- likeness: 0 is as like the training pictures as the base's pictures are, 1 as they are to each other
- prompt: share of pictures that fit their own prompt better than the other prompts
- drift: how far pictures without the trigger moved; 0 not at all, 1 as far as another prompt's picture is
- diversity: how unlike one another pictures are; 1 is as unlike as the training pictures
- held_out_LEVEL: loss on held-out pictures at a noise level, as a share of the base's; 1 is no better than the base
- memorisation: 0 is no nearer to a training picture than these are to each other, 1 is a copy
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.evaluation.similarity import pairwise
from finetune.events import Score

_ROUNDS, _LEVEL = 1000, 0.95
"""of the bootstrap"""
BLIND = 0.05
"""least distance, in cosine, between the two ends of a scale: below it the judge sees no difference between the two"""


class Likeness(NamedTuple):
    score: Score
    each: Tensor
    """(n,) of each adapted picture, on the same scale"""
    base: float
    """mean cosine of the base's pictures with the training pictures: the scale's 0"""
    real: float
    """mean cosine of the training pictures with each other: its 1"""

    @property
    def blind(self) -> bool:
        """The judge tells training pictures hardly from what the base paints."""
        return self.real - self.base < BLIND


def likeness_score(adapted: Tensor, base: Tensor, real: Tensor) -> Likeness:
    """On the scale between the base's pictures and the training pictures; at least two of these."""
    centre = real.double().mean(0)
    ours, theirs = adapted.double() @ centre, base.double() @ centre
    own, low = pairwise(real), float(theirs.mean())
    span = max(own - low, BLIND)
    score = bootstrap(lambda rows: (ours[rows].mean(1) - theirs[rows].mean(1)) / span, len(ours))
    return Likeness(score, (ours - low) / span, low, own)


def prompt_score(pictures: Tensor, captions: Tensor) -> Score:
    """captions (n, d): what each picture should show, in words that the judge knows; equal ones count as one."""
    fit = pictures.double() @ captions.double().T
    right = (fit.diagonal() >= fit.max(1).values - 1e-9).double()
    return bootstrap(lambda rows: right[rows].mean(1), len(right))


def drift_score(adapted: Tensor, base: Tensor) -> Score:
    """Of pictures without the trigger; at least two."""
    moved = 1 - (adapted.double() * base.double()).sum(1)
    apart = max(1 - pairwise(base), BLIND)
    return bootstrap(lambda rows: moved[rows].mean(1) / apart, len(moved))


def diversity_score(adapted: Tensor, real: Tensor) -> Score:
    """At least two pictures of each."""
    unlike, own = 1 - adapted.double() @ adapted.double().T, max(1 - pairwise(real), BLIND)

    def spread(rows: Tensor) -> Tensor:
        # a picture drawn twice is not a pair with itself
        drawn = F.one_hot(rows, len(unlike)).sum(1).double()
        pairs = drawn.sum(1).square() - drawn.square().sum(1)
        return torch.einsum("ri,ij,rj->r", drawn, unlike, drawn) / pairs.clamp(min=1) / own

    return bootstrap(spread, len(adapted))


def memorisation_score(adapted: Tensor, real: Tensor, views: Tensor) -> Score:
    """views (k, m, d): the training pictures as they are, mirrored, and cropped, in the order of `real`."""
    nearest = (views.double() @ adapted.double().T).flatten(0, 1).max(0).values
    among = (views.double() @ real.double().T).max(0).values
    own = float(among.masked_fill(torch.eye(len(real), dtype=torch.bool), -1).max(0).values.mean())
    span = max(1 - own, BLIND)
    return bootstrap(lambda rows: ((nearest[rows] - own) / span).clamp(min=0).mean(1), len(nearest))


def loss_score(adapted: Tensor, base: Tensor) -> Score:
    """Losses (n,) of the same images at the same noise: the adapter's mean, as a share of the base's."""
    return bootstrap(lambda rows: adapted.double()[rows].mean(1) / base.double()[rows].mean(1), len(base))


def bootstrap(statistic: Callable[[Tensor], Tensor], n: int) -> Score:
    """statistic: of drawn rows (rounds, n), whole numbers below n, to (rounds,)."""
    chance = torch.Generator().manual_seed(n)
    drawn = statistic(torch.randint(n, (_ROUNDS, n), generator=chance))
    ends = torch.quantile(drawn, torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64))
    return Score(float(statistic(torch.arange(n).unsqueeze(0))), float(ends[0]), float(ends[1]))
