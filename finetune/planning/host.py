"""What a run takes of this computer's memory and of the cache's disk, known before it starts."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from finetune import families
from finetune.data.images.buckets import Bucket
from finetune.data.text.caption_edits import TagEdits, shown_captions
from finetune.data.text.captions import without_trigger
from finetune.encoding.sizes import CacheBytes, cache_bytes, crops_shown, with_masks
from finetune.machine import has_gpu
from finetune.planning.footprint import ComponentFootprint, encoder_bytes
from finetune.planning.plan import Plan
from finetune.planning.pools import Pool

PROGRAM_BYTES = 600 << 20
"""Python with torch, diffusers and peft"""
PICTURE_BYTES = 2000
"""of a dataset's picture: its name, caption and digest, and what is planned for it"""


class HostNeeds(NamedTuple):
    """Bytes, about."""

    memory: int
    """of this computer, by each process of the run"""
    cache: CacheBytes
    captions: int = 0
    """different texts that are encoded"""


def host_needs(plan: Plan, components: Sequence[ComponentFootprint], device_bytes: int) -> HostNeeds:
    """device_bytes: what is needed where the run computes; without a GPU that is this computer."""
    captions = encoded_captions(plan)
    cache = cache_needed(plan, captions)
    pictures = len(plan.train.placed) + len(plan.held_out) + (len(plan.prior.placed) if plan.prior else 0)
    loaded = max([sum(c.weight_bytes for c in components), *encoder_bytes(plan).values()])
    memory = PROGRAM_BYTES + PICTURE_BYTES * pictures + cache.memory + (loaded if has_gpu() else device_bytes)
    return HostNeeds(memory, cache, len(captions))


def cache_needed(plan: Plan, captions: Collection[str] | None = None) -> CacheBytes:
    """Encoded images and captions, as if none were there yet. captions: `encoded_captions`, where they are known."""
    family, recipe = families.family_class(plan.facts.family), plan.recipe
    frozen = [encoder for encoder in family.encoders if encoder not in recipe.adapter.components]
    images = Counter[Bucket]()
    for pool in (plan.train, *([plan.prior] if plan.prior else [])):
        images.update(_crops(plan, pool))
    images.update(Counter(placed.bucket for placed in plan.held_out))
    captions = encoded_captions(plan) if captions is None else captions
    itemsize = 4 if recipe.train.precision == "fp32" else 2
    counted: dict[Bucket, float] = dict(images)
    cache = cache_bytes(plan.facts, counted, captions, itemsize, max(1, len(frozen)))
    return cache if recipe.data.mask_outside == 1 else with_masks(cache, plan.facts, _masked(plan))


def _masked(plan: Plan) -> dict[Bucket, float]:
    """Bucket -> encoded pictures that have a mask, all crops counted."""
    masks = Counter(placed.bucket for placed in plan.held_out if placed.example.mask)
    for pool in (plan.train, *([plan.prior] if plan.prior else [])):
        each = _crops_each(plan, pool)
        own = Counter(placed.bucket for placed in pool.placed if placed.example.mask)
        masks.update({bucket: round(each * count) for bucket, count in own.items()})
    return dict(masks)


def _crops(plan: Plan, pool: Pool) -> dict[Bucket, int]:
    """Bucket -> encoded pictures, all crops and control pictures counted."""
    each, pictures = _crops_each(plan, pool), Counter[Bucket]()
    for placed in pool.placed:
        pictures[placed.bucket] += 1 + len(placed.example.controls)
    return {bucket: round(each * count) for bucket, count in pictures.items()}


def _crops_each(plan: Plan, pool: Pool) -> float:
    """In how many crops a picture is shown."""
    data, schedule = plan.recipe.data, pool.schedule
    shown = _epochs(plan) * plan.train.schedule.micros_per_epoch * schedule.batch / schedule.images
    return crops_shown(data.crop == "random", data.flip, shown)


def encoded_captions(plan: Plan) -> set[str]:
    """All texts that training shows, is judged by, or draws samples of; none where every text encoder is trained."""
    if set(families.family_class(plan.facts.family).encoders) <= set(plan.recipe.adapter.components):
        return set()
    data, shown = plan.recipe.data, set[str]()
    for pool in (plan.train, *([plan.prior] if plan.prior else [])):
        shown |= _shown(plan, pool)
    if plan.recipe.prior.mode == "own_prediction":
        shown |= {without_trigger(caption, data.trigger, data.class_word) for caption in shown}
    judged = {placed.example.caption for placed in (*plan.train.placed, *plan.held_out)}
    return shown | judged | {"", *plan.recipe.sample.prompts, plan.recipe.sample.negative}


def _shown(plan: Plan, pool: Pool) -> set[str]:
    edits, seed = TagEdits.of(plan.recipe.data), plan.recipe.train.seed
    if not edits.active:
        return {caption for p in pool.placed for caption in p.example.wordings or (p.example.caption,)}
    visits = pool.schedule.visits(_epochs(plan) * plan.train.schedule.micros_per_epoch)
    each = (shown_captions(placed.example, edits, seed, visits[n]) for n, placed in enumerate(pool.placed))
    return {caption for captions in each for caption in captions}


def _epochs(plan: Plan) -> int:
    """Looks are encoded to the end of the last one."""
    return -(-plan.micros // plan.train.schedule.micros_per_epoch)
