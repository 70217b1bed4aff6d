"""Losses on pictures held out of training, by noise level, beside the base's: what training brought for them."""

from collections.abc import Sequence

import torch

from finetune.adapters import attach as adapters
from finetune.data.dataset import Placed
from finetune.encoding.masks import NO_MASKS, Masks
from finetune.encoding.text import Captions
from finetune.evaluation.effect import LEVELS, Judged, Latents, errors
from finetune.evaluation.meaning import HELD_OUT as HELD_OUT
from finetune.evaluation.scores import loss_score
from finetune.events import Score
from finetune.families.base import Prompt
from finetune.machine import Autocast


def held_out_scores(
    placed: Sequence[Placed],
    latents: Latents,
    captions: Captions,
    autocast: Autocast,
    px: int,
    masks: Masks = NO_MASKS,
) -> dict[str, Score]:
    """Nothing without held-out pictures. px: of one batch, at most."""
    asked = [Judged(p, Prompt.of(p.example), level) for level in LEVELS for p in placed]
    if not asked:
        return {}
    with adapters.disabled(captions.family.parts.loaded()):
        base = errors(asked, latents, captions, autocast, px, masks)
    adapted = errors(asked, latents, captions, autocast, px, masks)
    rows = {level: [one.key for one in asked if one.level == level] for level in LEVELS}
    return {
        f"{HELD_OUT}{level}": loss_score(*(torch.tensor([found[key] for key in keys]) for found in (adapted, base)))
        for level, keys in rows.items()
    }
