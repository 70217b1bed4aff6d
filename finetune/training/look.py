"""What a visit of a sample shows: one function, by which both what must be encoded is listed and batches are built."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from finetune.data.dataset import Placed
from finetune.data.example import Example
from finetune.data.text.caption_edits import TagEdits, shown_caption
from finetune.data.text.captions import without_trigger
from finetune.diffusion.chance import Draw, draw
from finetune.encoding.images import CENTER, PLACES, STRAIGHT, Crop, Wanted
from finetune.families.base import Prompt, as_prompts
from finetune.planning.plan import Plan
from finetune.training.learnt import evaluation_prompts

_PLAIN = Draw(0.0, 0.5, False, False, 0, 0)
"""in the middle, not mirrored, with its caption"""


class Look(NamedTuple):
    """One sample as the model is shown it, control pictures cut alike."""

    placed: Placed
    crop: Crop
    prompt: Prompt
    """the caption "" where dropped"""
    preserved: Prompt | None
    """without the trigger, for the base's own prediction; None: not asked for"""
    chance: Draw
    """what else is decided of this visit: its noise, and where on the noise path"""


def look(plan: Plan, placed: Placed, visit: int) -> Look:
    """The visit-th look at a sample, from 0. What must be encoded is listed by this, too: a new choice is made here, by
    `chance.choice` (of captions by `caption_edits`), and `varied` says when; nowhere else."""
    data = plan.recipe.data
    return _look(
        plan, placed, visit, draw(plan.recipe.train.seed, placed.example.name, visit, data.caption_dropout, data.flip)
    )


def varied(plan: Plan, example: Example) -> bool:
    """Whether chance decides what a look shows, but for a caption that is dropped."""
    data = plan.recipe.data
    return data.crop == "random" or data.flip or len(example.wordings) > 1 or TagEdits.of(data).active


def _look(plan: Plan, placed: Placed, visit: int, chance: Draw) -> Look:
    data, example = plan.recipe.data, placed.example
    place = int(chance.place * len(PLACES)) if data.crop == "random" else CENTER
    caption = "" if chance.drop_caption else shown_caption(example, TagEdits.of(data), plan.recipe.train.seed, visit)
    prompt = Prompt.of(example, caption)
    crop = Crop(place, chance.flip)
    return Look(placed, STRAIGHT if crop == STRAIGHT else crop, prompt, _preserved(plan, prompt), chance)


def looks(plan: Plan) -> Iterator[Look]:
    """What the schedule shows to the end of its last epoch, beside pictures as they are judged, their captions and "",
    which are listed anyway. Where chance decides, each look as often as it is taken; else one of each kind."""
    epochs = -(-plan.micros // plan.train.schedule.micros_per_epoch)
    micros = epochs * plan.train.schedule.micros_per_epoch
    for pool in (plan.train, *([plan.prior] if plan.prior else [])):
        whole = -(-micros // pool.schedule.micros_per_epoch) * pool.schedule.micros_per_epoch
        often = any(varied(plan, placed.example) for placed in pool.placed)
        visits = pool.schedule.visits(whole) if often else {}
        judged = pool is plan.train and plan.recipe.prior.mode != "own_prediction"
        for sample, placed in enumerate(pool.placed):
            if varied(plan, placed.example):
                yield from (look(plan, placed, visit) for visit in range(visits[sample]))
            elif not judged:
                yield _look(plan, placed, 0, _PLAIN)
            if placed.example.controls and plan.recipe.data.caption_dropout:
                yield _look(plan, placed, 0, _PLAIN._replace(drop_caption=True))


def prompts(plan: Plan) -> list[Prompt]:
    """Every prompt that training shows, that it is judged by, or that its samples are drawn from."""
    samples = as_prompts(["", *plan.recipe.sample.prompts, plan.recipe.sample.negative, *evaluation_prompts(plan)])
    own = (Prompt.of(p.example) for p in (*plan.train.placed, *plan.held_out))
    shown = (prompt for one in looks(plan) for prompt in (one.prompt, one.preserved) if prompt is not None)
    return list({prompt.key: prompt for prompt in chain(samples, own, shown)}.values())


def wanted(plan: Plan) -> list[Wanted]:
    """Every (image, crop) that training shows or is judged by, control pictures included."""
    shown = (Wanted(one.placed.example, one.placed.bucket, one.crop) for one in looks(plan))
    judged = (Wanted(p.example, p.bucket, STRAIGHT) for p in (*plan.train.placed, *plan.held_out))
    own = {(w.example.name, w.crop): w for w in chain(shown, judged)}.values()
    return [*own, *(w._replace(example=control) for w in own for control in w.example.controls)]


def _preserved(plan: Plan, prompt: Prompt) -> Prompt | None:
    if plan.recipe.prior.mode != "own_prediction":
        return None
    data = plan.recipe.data
    return Prompt(without_trigger(prompt.caption, data.trigger, data.class_word), prompt.images)
