"""What a run takes of the disk that its folder is on, known before it starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from finetune import reading
from finetune.caches import default_root
from finetune.planning.candidates import candidate_bytes, candidate_count, is_scored
from finetune.planning.footprint import ComponentFootprint
from finetune.planning.plan import Plan
from finetune.recipe import LowRank

_LOGS_BYTES = 64 << 20
"""events, curves, and the run's page"""
_JUDGED = 32
"""pictures of one evaluation, the base's included, where the recipe does not say how many"""


def disk_bytes(plan: Plan, components: Sequence[ComponentFootprint]) -> int:
    """Checkpoints and one more while it is written, candidates, exported files, and pictures, at most."""
    trained = sum(4 * c.trainable for c in components)
    state = trained + sum(c.optimizer_bytes + c.mean_bytes for c in components)
    whole = not isinstance(plan.recipe.adapter, LowRank) or "merged" in plan.recipe.export.layouts
    pipeline = 2 * sum(4 * c.parameters for c in components) if whole else 0
    candidates = candidate_count(plan) * candidate_bytes(plan, components)
    checkpoints = state * (plan.recipe.train.keep_last + 1)
    return checkpoints + 3 * trained + candidates + pipeline + _picture_bytes(plan) + _LOGS_BYTES


def cache_folder(plan: Plan) -> Path:
    """Where encoded images and captions are kept."""
    return plan.recipe.data.cache or default_root()


def free_disk(folder: Path) -> int:
    """Bytes that are free where the folder is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if reading.exists(p))).free


def _picture_bytes(plan: Plan) -> int:
    """As if no picture could be compressed."""
    sample, wanted = plan.recipe.sample, plan.recipe.evaluate
    sheets = (plan.steps // sample.every + 1 if sample.every else 0) + 4  # the last one, and the card's copy of it
    judged = 0 if wanted.count == 0 else 4 * wanted.count if wanted.count else _JUDGED
    verdicts = 1 + sum(is_scored(plan, step) for step in range(1, plan.steps + 1)) if wanted.every else 1
    pictures = sheets * len(sample.prompts) + verdicts * judged
    return 3 * pictures * plan.recipe.data.resolution**2
