"""The verdict: was it learnt? The scores against thresholds, in plain words, with the likeliest cause first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from finetune.data.example import Dataset
from finetune.data.text import captions
from finetune.errors import NotLearnt
from finetune.evaluation.prompts import Aim, PromptSet
from finetune.evaluation.scores import Likeness
from finetune.events import Evaluated, Score, TrainingEffect


class Thresholds(NamedTuple):
    """Where a score says yes.

    From a first calibration on the pocket base with its eyes: three runs as shipped and six spoilt on purpose, with the
    referee's word on each (docs/log.md has the numbers, `benchmarks/verdict.py` makes more). They are on scales whose
    ends are the base and the training pictures, so that they depend little on the judge's own cosines.
    """

    product: float = 0.5
    """likeness of a picture in which the product is seen: of 10 pictures each, shipped runs had 0.88 and more, spoilt
    ones 0.39 and less"""
    style: float = 0.8
    """likeness of a picture in which the style is seen; more, as single pictures of a base come near a style by chance
    (0.67). Shipped runs had 0.87 and more; of a run that learnt half, the referee sees 3 of 10 and this 5"""
    enough: float = 0.7
    """share of prompts in which it must be seen"""
    risen: float = 0.1
    """the lower end of the likeness's interval must be above: the pictures are nearer than the base's, and not by
    chance"""
    alike: float = 0.85
    """likeness from which pictures are called as like as the real ones"""
    followed: float = 0.5
    """share of what the base shows as asked that must still be shown"""
    surely: float = 0.8
    """the same share, from which prompts are surely followed"""
    blindly: float = 1.5
    """captions that fit their own pictures in no more than so many times the share of blind dealing are mixed up: true
    ones did in 0.50 and more, shuffled ones in 0 to 0.33, with 0.17 by chance (docs/log.md)"""
    unchanged: float = 0.1
    """drift below which other prompts count as unchanged"""
    broken: float = 0.5
    """drift above which the base's knowledge is lost"""
    copied: float = 0.5
    """memorisation from which pictures are called copies"""


LIMITS = Thresholds()
ASKED_FOR: dict[Aim, str] = {"product": "the setting", "style": "the object"}
"""what a prompt with the trigger asks for beside it"""
FEW_VISITS = 80
"""looks at each training picture below which a run was short: shipped recipes take 100 to 200"""
LITTLE_CHANGE = 0.05
"""change of the prediction, as a share of it, below which training has hardly moved the model"""


class Measures(NamedTuple):
    """What was measured of an adapter's pictures."""

    to_real: Likeness
    scores: dict[str, Score]
    """likeness and the others of `scores`; prompt is lacking when the judge cannot read such pictures"""
    base_prompt: float
    """share of the base's pictures that fit their prompt; 0 when prompts are not scored"""


@dataclass(frozen=True)
class Training:
    """What is known of how an adapter was trained; what is not known names no cause."""

    data: Dataset
    visits: float | None = None
    """looks at each training picture, mean"""
    components: tuple[str, ...] = ()
    learning_rate: float | None = None
    effect: TrainingEffect | None = None
    held_out: Mapping[str, Score] = field(default_factory=dict)
    """scores of held-out pictures, measured while the run had them encoded"""


def judge(path: Path, asked: PromptSet, found: Measures, training: Training, limits: Thresholds = LIMITS) -> Evaluated:
    """Learnt: seen in enough prompts, surely nearer to the training pictures than the base's pictures are, what is
    asked for still shown, and the base's other knowledge not lost."""
    hits, count = hits_of(asked.aim, found, limits), len(found.to_real.each)
    near = found.to_real.score.low > limits.risen and hits >= limits.enough * count
    learnt = near and not (_ignored(found, limits) or _broken(found, limits) or _mixed_up(found, training, limits))
    reasons = tuple(causes(asked, found, training, near, limits))
    scores = {**found.scores, **training.held_out}
    return Evaluated(
        path, learnt, seen(asked.aim, found, limits), scores, reasons, sentence(asked.aim, hits, found, near, limits)
    )


def seen(aim: Aim, found: Measures, limits: Thresholds = LIMITS) -> str:
    """In how many pictures with the trigger the product or style is seen, such as 9/10."""
    return f"{hits_of(aim, found, limits)}/{len(found.to_real.each)}"


def hits_of(aim: Aim, found: Measures, limits: Thresholds = LIMITS) -> int:
    """The number of these pictures."""
    return int((found.to_real.each >= getattr(limits, aim)).sum())


def not_learnt(told: Evaluated) -> NotLearnt:
    """A verdict as the error that a run ends with; the file stays."""
    return NotLearnt(
        f"not learnt: {told.text}; the file is kept: {told.path}",
        told.reasons[0] if told.reasons else "look at the pictures",
    )


def sentence(aim: Aim, hits: int, found: Measures, near: bool, limits: Thresholds = LIMITS) -> str:
    """Such as "the product is seen in 9 of 10 prompts; as like its pictures as they are to each other (0.93); ..."."""
    parts = [f"the {aim} is seen in {hits} of {len(found.to_real.each)} prompts", _nearness(found, near, limits)]
    if (prompt := found.scores.get("prompt")) is not None:
        count = len(found.to_real.each)
        parts.append(f"{ASKED_FOR[aim]} asked for is there in {round(prompt.value * count)} of {count}")
    return "; ".join([*parts, _change(found.scores["drift"].value, limits)])


def _nearness(found: Measures, near: bool, limits: Thresholds) -> str:
    value = found.to_real.score.value
    if near and value >= limits.alike:
        return f"as like its pictures as they are to each other ({value:.2f})"
    if found.to_real.score.low <= 0:
        return f"no nearer to its pictures than the base's are ({value:.2f})"
    return f"{value:.2f} of the way from the base's pictures to its own"


def _change(drift: float, limits: Thresholds) -> str:
    if drift <= limits.unchanged:
        return "other prompts are unchanged"
    if drift < limits.broken:
        return f"other prompts have changed a little ({drift:.2f})"
    return f"other prompts show other things than before ({drift:.2f})"


def _ignored(found: Measures, limits: Thresholds) -> bool:
    prompt = found.scores.get("prompt")
    return prompt is not None and prompt.high < limits.followed * found.base_prompt


def _mixed_up(found: Measures, training: Training, limits: Thresholds) -> bool:
    """To the base, captions fit their own pictures no better than if they had been dealt blindly, and the pictures do
    not show the contrary: prompts are not scored, or not surely followed."""
    fit, prompt = training.effect.base_fit if training.effect else None, found.scores.get("prompt")
    followed = prompt is not None and prompt.value >= limits.surely * found.base_prompt
    return fit is not None and fit.share <= limits.blindly * fit.chance and not followed


def _broken(found: Measures, limits: Thresholds) -> bool:
    return found.scores["drift"].low > limits.broken


def causes(
    asked: PromptSet, found: Measures, training: Training, near: bool, limits: Thresholds = LIMITS
) -> Iterator[str]:
    """What may be wrong, the likeliest first, each with what to do; nothing of a run that did well."""
    drift, prompt = found.scores["drift"], found.scores.get("prompt")
    if _mixed_up(found, training, limits):
        yield "captions fit their own pictures no better than any others, to the base: are they mixed up?"
    if not near:
        yield from _unlearnt(asked, found, training)
    if prompt is not None and prompt.value < limits.followed * found.base_prompt:
        yield (
            f"prompts are followed in {prompt.value:.0%} of the pictures, the base's in {found.base_prompt:.0%}: do "
            "the captions say what their own pictures show?"
        )
    if drift.value > limits.unchanged and drift.low > 0:
        yield (
            f"pictures without the trigger have changed ({drift.value:.2f}): prior.mode = own_prediction, fewer "
            "train.steps, or a lower optimizer.learning_rate"
        )
    if worse := [name for name, score in training.held_out.items() if score.low > 1]:
        yield f"held-out pictures are predicted worse than by the base ({', '.join(worse)}): fewer train.steps"
    copies = found.scores["memorisation"]
    if copies.low > limits.copied:
        yield f"pictures repeat training pictures ({copies.value:.2f}): fewer train.steps, or more pictures"


def _unlearnt(asked: PromptSet, found: Measures, training: Training) -> Iterator[str]:
    if found.to_real.blind:
        yield (
            "the judge sees hardly a difference between the training pictures and the base's: "
            "name another one, evaluate.judge"
        )
    yield from _of_captions(asked, training.data)
    yield from _of_length(training)


def _of_captions(asked: PromptSet, data: Dataset) -> Iterator[str]:
    said = [wording for e in data.examples for wording in (e.wordings or (e.caption,))]
    if len(data.examples) > 1 and len(set(said)) == 1:
        yield (
            f'all {len(data.examples)} captions are the same ("{said[0]}"): say in each what its picture shows '
            f"beside the {asked.aim}"
        )
    having = captions.coverage(said, data.trigger)
    if data.trigger and having.having * 2 < having.of:
        yield f"{having.having} of {having.of} captions have the trigger {data.trigger!r}: add it to them"
    own = {word for caption in said for word in _words(caption)} - _words(f"{data.trigger} {data.class_word}")
    lacking = [a.prompt for a in asked.with_trigger if not own & _words(a.prompt)]
    if own and len(lacking) * 2 > len(asked.with_trigger):
        yield f'the prompts share no wording with the captions: "{lacking[0]}" beside "{said[0]}"'


def _words(text: str) -> set[str]:
    return {word for word in text.lower().replace(",", " ").split() if word not in ("a", "an", "the")}


def _of_length(training: Training) -> Iterator[str]:
    visits, rate, effect = training.visits, training.learning_rate, training.effect
    if visits is not None and visits < FEW_VISITS:
        yield f"each picture was shown {visits:.0f} times, which is few: more train.steps"
    if training.components and not any("text_encoder" in name for name in training.components):
        yield "the text encoder was not trained, and may not know the trigger: adapter.components"
    if effect is not None and effect.output < LITTLE_CHANGE and visits is not None and visits >= FEW_VISITS:
        told = "" if rate is None else f" (it is {rate:g})"
        yield f"the prediction changed by {effect.output:.1%} only: raise optimizer.learning_rate{told}"
    elif effect is not None and effect.gain < 0:
        yield "the training images are predicted worse than by the base: lower optimizer.learning_rate"
