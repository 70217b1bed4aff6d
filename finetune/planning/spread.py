"""Whether a run's weights are spread over its GPUs, or each GPU holds all of them."""

from collections.abc import Sequence

import torch

from finetune.errors import RecipeError
from finetune.machine import has_gpu
from finetune.planning.counts import kept_footprints
from finetune.planning.footprint import ComponentFootprint
from finetune.planning.plan import Plan

ROOM = 0.8
"""of a GPU's memory, for weights, gradients and optimizer state; the rest is for activations"""


def is_spread(plan: Plan, world: int) -> bool:
    """By train.shard; with one process there is nothing to spread over.

    Raises:
        RecipeError: what the recipe asks for cannot be spread.
    """
    said = plan.recipe.train.shard
    if world == 1 or said == "off":
        return False
    hindered = hindrance(plan)
    if said == "on" and hindered:
        raise RecipeError(f"train.shard = on cannot be had with {hindered[0]}", hindered[1])
    return said == "on" or (not hindered and not _fits(plan))


def hindrance(plan: Plan) -> tuple[str, str] | None:
    """What stands against it, and what to do; None: nothing."""
    train, optimizer = plan.recipe.train, plan.recipe.optimizer.name
    if train.base_bits:
        return "train.base_bits: packed weights are not spread", "leave one of them out"
    if train.precision == "fp16":
        return "train.precision = fp16: each rank would find a loss scale of its own", "train.precision = bf16"
    if train.compile:
        return "train.compile", "leave one of them out"
    if optimizer != "adamw":
        return f"optimizer.name = {optimizer}, whose state is not spread", 'optimizer.name = "adamw"'
    return None


def held_bytes(plan: Plan, components: Sequence[ComponentFootprint]) -> int:
    """Weights, gradients and optimizer state on each device while it trains, without activations."""
    world, whole = plan.train.schedule.world_size, sum(one.bytes for one in components)
    return -(-whole // world) if is_spread(plan, world) else whole


def gathered_bytes(components: Sequence[ComponentFootprint]) -> int:
    """Of the model as each device holds it while pictures are made."""
    return sum(one.weight_bytes for one in components)


def _fits(plan: Plan) -> bool:
    if not has_gpu():
        return True
    taken = sum(one.bytes for one in kept_footprints(plan) if one.trainable)
    return taken <= ROOM * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
