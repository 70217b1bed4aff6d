"""What a visit of a sample shows: one function, by which both what must be encoded is listed and batches are built."""

from collections.abc import Iterator
from typing import NamedTuple

from finetune.data.captions import without_trigger
from finetune.data.dataset import Placed
from finetune.data.example import Example
from finetune.diffusion.chance import Draw, choice, draw
from finetune.encoding.images import CENTER, PLACES, STRAIGHT, Crop, Wanted
from finetune.families.base import Prompt, as_prompts
from finetune.planning.plan import Plan
from finetune.training.learnt import evaluation_prompts


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
    """The visit-th look at a sample, from 0. What must be encoded is listed by this, too: a new choice (another
    caption, shuffled tags) is made here, by `chance.choice`, and nowhere else."""
    data, example = plan.recipe.data, placed.example
    chance = draw(plan.recipe.train.seed, example.name, visit, data.caption_dropout, data.flip)
    place = int(chance.place * len(PLACES)) if data.crop == "random" else CENTER
    prompt = Prompt.of(example, "" if chance.drop_caption else _wording(plan.recipe.train.seed, example, visit))
    return Look(placed, Crop(place, chance.flip), prompt, _preserved(plan, prompt), chance)


def _wording(seed: int, example: Example, visit: int) -> str:
    """One of the wordings of a caption that no person wrote, drawn for the visit."""
    some = example.wordings or (example.caption,)
    return some[0] if len(some) == 1 else choice(seed, example.name, visit, "wording").choice(some)


def looks(plan: Plan) -> Iterator[Look]:
    """Every look of the schedule, to the end of its last epoch, each as often as it is taken."""
    epochs = -(-plan.micros // plan.train.schedule.micros_per_epoch)
    micros = epochs * plan.train.schedule.micros_per_epoch
    for pool in (plan.train, *([plan.prior] if plan.prior else [])):
        whole = -(-micros // pool.schedule.micros_per_epoch) * pool.schedule.micros_per_epoch
        for sample, visits in sorted(pool.schedule.visits(whole).items()):
            yield from (look(plan, pool.placed[sample], visit) for visit in range(visits))


def prompts(plan: Plan) -> list[Prompt]:
    """Every prompt that training shows, that it is judged by, or that its samples are drawn from."""
    own = [Prompt.of(p.example) for p in (*plan.train.placed, *plan.held_out)]
    shown = [prompt for one in looks(plan) for prompt in (one.prompt, one.preserved) if prompt is not None]
    samples = as_prompts(["", *plan.recipe.sample.prompts, plan.recipe.sample.negative, *evaluation_prompts(plan)])
    return list({prompt.key: prompt for prompt in [*samples, *own, *shown]}.values())


def wanted(plan: Plan) -> list[Wanted]:
    """Every (image, crop) that training shows or is judged by, control pictures included."""
    shown = [Wanted(one.placed.example, one.placed.bucket, one.crop) for one in looks(plan)]
    judged = [Wanted(p.example, p.bucket, STRAIGHT) for p in (*plan.train.placed, *plan.held_out)]
    own = {(w.example.name, w.crop): w for w in [*shown, *judged]}.values()
    return [*own, *(w._replace(example=control) for w in own for control in w.example.controls)]


def _preserved(plan: Plan, prompt: Prompt) -> Prompt | None:
    if plan.recipe.prior.mode != "own_prediction":
        return None
    data = plan.recipe.data
    return Prompt(without_trigger(prompt.caption, data.trigger, data.class_word), prompt.images)
