"""Candidates: the steps of a run whose adapter is written as a whole file, known before it starts."""

import math
from collections.abc import Sequence

from finetune.machine import DTYPES
from finetune.planning.footprint import ComponentFootprint
from finetune.planning.plan import Plan
from finetune.recipe import LowRank

_COMPLETE = ("attention", "attention+ff", "all")
"""targets with which a text encoder's layers have all their projections; a file fills others up with zeros"""
_HEADER_BYTES = 1 << 20
"""the most that a file's header may take"""


def is_candidate(plan: Plan, step: int) -> bool:
    """Is the adapter of this step written? Where pictures of it are made or it is evaluated, but for step 0, which has
    learnt nothing."""
    return _has_file(plan) and (is_scored(plan, step) or _due(step, plan.recipe.sample.every))


def is_scored(plan: Plan, step: int) -> bool:
    """Is the adapter of this step evaluated on the way? At the last step, too: it may be the one to pick."""
    every = plan.recipe.evaluate.every
    return _has_file(plan) and (_due(step, every) or (every > 0 and step == plan.steps))


def candidate_count(plan: Plan) -> int:
    """Over the whole run, which may be of any length: counted, not walked through."""
    if not _has_file(plan):
        return 0
    sampled, scored = plan.recipe.sample.every, plan.recipe.evaluate.every
    both = math.lcm(sampled, scored)
    due = sum(plan.steps // every for every in (sampled, scored) if every > 0) - (plan.steps // both if both else 0)
    return due + (is_candidate(plan, plan.steps) and not _due(plan.steps, scored) and not _due(plan.steps, sampled))


def candidate_bytes(plan: Plan, components: Sequence[ComponentFootprint]) -> int:
    """Of one file, at most."""
    config = plan.recipe.adapter
    if not isinstance(config, LowRank):
        return 0
    ranks = (config.rank, *config.ranks.values())  # a file has one rank: the largest
    text = 1 if config.text_encoder_targets in _COMPLETE else 4
    numbers = sum(c.trainable * (text if c.name.startswith("text_encoder") else 1) for c in components)
    return numbers * DTYPES[plan.recipe.export.dtype].itemsize * max(ranks) // min(ranks) + _HEADER_BYTES


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _has_file(plan: Plan) -> bool:
    """Full fine-tuning has no adapter to write: each candidate would be a whole base."""
    return isinstance(plan.recipe.adapter, LowRank)
