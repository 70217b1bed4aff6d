"""The verdict at the end of a run: was it learnt? Painted from the exported file, in a tenth of the run's time."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from finetune import recipe
from finetune.evaluation import subject
from finetune.evaluation.evaluate import DENOISING_STEPS, asked_of, evaluate
from finetune.evaluation.prompts import pictures_for
from finetune.evaluation.said import said_in
from finetune.evaluation.subject import Subject
from finetune.evaluation.verdict import not_learnt
from finetune.events import Note, Score, TrainingEffect
from finetune.planning.plan import Plan
from finetune.training.stop import Events

NOTHING: Mapping[str, Score] = MappingProxyType({})
SHARE = 0.1
"""of the run's time that pictures may take, by default"""
_FORWARD_BACKWARD, _PRIOR, _RECOMPUTED = 3, 2, 1
"""passes of the denoiser that a sample of a training step takes: at least, with a prior, with checkpointing"""


def judged(
    plan: Plan, file: Path, out: Path, effect: TrainingEffect | None, held_out: Mapping[str, Score] = NOTHING
) -> Events:
    """The verdict on an exported file, or a note why there is none.

    effect, held_out: what was measured before the model was let go.

    Raises:
        TrainError: not learnt; the file is kept.
    """
    wanted = plan.recipe.evaluate
    if wanted.count == 0:
        yield Note(f"evaluate.count = 0: {subject.UNJUDGED}")
        return
    judge = subject.judge_for(plan.recipe.base, wanted.judge, plan.data)
    if judge is None:
        yield Note(": ".join(subject.unjudged(plan.recipe.base)))
        return
    about = subject_of(plan, file, out, judge, effect)
    training = dataclasses.replace(about.training, held_out=held_out)
    told = yield from evaluate(dataclasses.replace(about, training=training))
    if not told.learnt:
        raise not_learnt(told)


def evaluation_prompts(plan: Plan) -> list[str]:
    """What the trained model is asked to paint on the way; nothing where it is evaluated at the end only."""
    if plan.recipe.evaluate.every == 0:
        return []
    judge = subject.judge_for(plan.recipe.base, plan.recipe.evaluate.judge, plan.data)
    assert judge is not None, "a recipe that asks for scores on the way is refused without"
    asked = asked_of(subject_of(plan, Path(), Path(), judge, None))
    return [one.prompt for one in (*asked.with_trigger, *asked.without)]


def affordable(plan: Plan) -> int:
    """How many pictures with the trigger take no more than a tenth of the run's time, counted in passes of the
    denoiser, so that the same run asks for the same pictures on every machine."""
    train, guidance = plan.recipe.train, plan.recipe.sample.guidance
    a_sample = (
        _FORWARD_BACKWARD + _PRIOR * (plan.recipe.prior.mode != "off") + _RECOMPUTED * train.gradient_checkpointing
    )
    a_picture = DENOISING_STEPS * (2 if guidance > 1 and not plan.facts.guided else 1)
    pictures = SHARE * plan.samples * a_sample / a_picture
    counts = range(subject.FEWEST, subject.COUNT + 1)
    return max((n for n in counts if pictures_for(n) <= pictures), default=subject.FEWEST)


def subject_of(plan: Plan, file: Path, out: Path, judge: Path, effect: TrainingEffect | None) -> Subject:
    """What the verdict on a run of this plan is asked about."""
    config = plan.recipe
    training = subject.training_of(said_in(recipe.dumps(config), "the recipe"), plan.data)
    return Subject(
        file, config.base, dataclasses.replace(training, effect=effect), out / subject.EVALUATION, judge,
        affordable(plan) if config.evaluate.count is None else config.evaluate.count, config.evaluate.prompts,
        config.data.resolution, config.sample.guidance,
        subject.session_options(config.train.base_bits, config.data.text_encoder_bits, config.objective.prediction),
    )  # fmt: skip
