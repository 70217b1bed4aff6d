"""Everything a run will do, decided before anything heavy is loaded: the recipe with every default filled in, the
buckets and the schedule."""

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

from finetune import families, recipe
from finetune import resources as shipped
from finetune.data import dataset
from finetune.data.dataset import Placed
from finetune.data.example import Dataset
from finetune.data.images.buckets import Bucket, plan_buckets
from finetune.data.photographic import PHOTOGRAPHS, are_photographs
from finetune.data.quality import caption_checks
from finetune.data.text.caption_edits import TagEdits, without_effect
from finetune.data.text.captions import clean_words
from finetune.errors import RecipeError, action
from finetune.events import Event, quietly
from finetune.families.base import BaseInfo
from finetune.planning import pools
from finetune.planning.pools import Pool
from finetune.planning.prompts import prompt_notices, unlike_captions
from finetune.planning.public import left_out
from finetune.planning.readers import reader_notices
from finetune.planning.resolve import check_compatible, check_kept, resolve, resolve_prediction
from finetune.planning.trigger_case import case_notice
from finetune.recipe import Loaded, Recipe, bounds
from finetune.recipe.resolved import ResolvedRecipe

NAMED = 6
"""at most, of what the base's files hold that nothing reads"""


class BucketRow(NamedTuple):
    bucket: Bucket
    images: int
    batches: int
    """an epoch"""
    weight: float
    """visits an epoch, mean over its images"""
    surplus: float
    """visits, as a multiple of what the images' weights ask for; above 1 where the batch is filled by cycling"""
    worst_crop_loss: float


@dataclass(frozen=True)
class Plan:
    recipe: ResolvedRecipe
    sources: dict[str, str]
    facts: BaseInfo
    data: Dataset
    train: Pool
    prior: Pool | None
    held_out: tuple[Placed, ...]
    micros: int
    """micro-batches of the whole run, all ranks"""
    notices: tuple[str, ...] = ()
    """what should be known of the recipe, such as a key's new name, or prompts without the trigger"""

    @property
    def steps(self) -> int:
        return self.recipe.train.steps

    @property
    def samples(self) -> int:
        return self.micros * self.recipe.train.batch

    def visits(self) -> Counter[int]:
        return self.train.schedule.visits(self.micros)

    def buckets(self) -> list[BucketRow]:
        rows = []
        schedule = self.train.schedule
        for samples, slots in zip(schedule.buckets, schedule.slots, strict=True):
            placed = [self.train.placed[i] for i in samples]
            batches = -(-len(slots) // self.recipe.train.batch)
            shown = batches * self.recipe.train.batch
            worst = max(p.crop_loss for p in placed)
            views, surplus = shown / len(samples), shown / len(slots)
            rows.append(BucketRow(placed[0].bucket, len(samples), batches, views, surplus, worst))
        return rows


def resolving(loaded: Loaded, world: int = 1) -> Generator[Event, None, Plan]:
    """Read base and data, and decide all that was left open; tells how far it is where that takes long.

    Raises:
        RecipeError, DataError, BaseError: what does not fit, in the user's words.
    """
    wanted = loaded.recipe
    bounds.check("gpus", world, "gpus")
    facts = resolve_prediction(families.detect(wanted.base), wanted)
    check_compatible(facts, wanted)
    said = wanted.data
    words = clean_words(said.trigger, said.class_word, None, allow_uncaptioned=said.allow_uncaptioned)
    data = yield from dataset.reading_dataset(shipped.data_path(said.path), words)
    area_px = (wanted.data.resolution or facts.resolution) ** 2
    buckets = plan_buckets(area_px, facts.stride, wanted.data.max_aspect)
    training, held_out = pools.hold_out(dataset.assign_buckets(data.examples, buckets), wanted)
    train = pools.make_pool(training, wanted, world)
    prior = yield from pools.prior_pool(wanted, data, buckets, world)
    micros, steps = pools.run_length(wanted, train.schedule)
    resolved = resolve(wanted, facts, data, [p.example.caption for p in training], steps)
    check_kept(resolved)
    sources = {**dict.fromkeys(recipe.derived(wanted, resolved), "derived"), **loaded.sources}
    prompts = prompt_notices(wanted.base, facts, resolved, data.trigger)
    prompts += unlike_captions(resolved.sample.prompts, data)
    notices = (
        *loaded.notices,
        *unread(facts),
        *unsaid(wanted, facts),
        *caption_checks.remarks(data.examples, data.words),
        *uncaptioned(wanted, data),
        *filter(None, [without_effect([p.example for p in training], TagEdits.of(resolved.data))]),
        *data.understood,
        *wrong_case(wanted, data),
        *mask_notices(wanted, data),
        *beyond_pocket(wanted, data),
        *train.notices,
        *(f"prior: {text}" for text in (prior.notices if prior else ())),
        *reader_notices(families.family_class(facts.family), wanted.adapter),
        *prompts,
        *left_out(resolved, data),
    )
    return Plan(resolved, sources, facts, data, train, prior, tuple(held_out), micros, notices)


resolve_plan = quietly(resolving)


def unread(facts: BaseInfo) -> tuple[str, ...]:
    """What the base's files hold that has no effect here."""
    if not facts.unused:
        return ()
    named = ", ".join(facts.unused[:NAMED]) + (f" and {more} more" if (more := len(facts.unused) - NAMED) > 0 else "")
    return (f"parts of the base that are not used: {named}",)


def unsaid(wanted: Recipe, facts: BaseInfo) -> tuple[str, ...]:
    if facts.prediction_known:
        return ()
    return (
        f"{wanted.base} does not say whether it predicts epsilon or v: one forward pass will tell when it is loaded; "
        "set objective.prediction in the recipe to be sure",
    )


def wrong_case(wanted: Recipe, data: Dataset) -> tuple[str, ...]:
    """What captions with the trigger in another case are to this base."""
    captions = [e.caption for e in data.examples]
    if not case_notice(captions, data.trigger, None):
        return ()  # the tokenizer is loaded only where it is asked
    notice = case_notice(captions, data.trigger, families.tokenizer(wanted.base).same)
    return (notice,) if notice else ()


def mask_notices(wanted: Recipe, data: Dataset) -> tuple[str, ...]:
    """A setting that does nothing; 0 is written into every run's own recipe."""
    if wanted.data.mask_outside and not data.masked:
        return ("data.mask_outside has no effect: no image of the dataset has a mask",)
    return ()


def beyond_pocket(wanted: Recipe, data: Dataset) -> tuple[str, ...]:
    """That the pocket base cannot draw such pictures.

    Raises:
        RecipeError: they are to be scored on the way, and its judge does not know them.
    """
    if not shipped.is_pocket(wanted.base) or not are_photographs(data.examples):
        return ()
    if wanted.evaluate.every and wanted.evaluate.judge is None:
        raise RecipeError(
            f"evaluate.every: the images are {PHOTOGRAPHS}, and the pocket base's judge knows flat drawings only",
            "name the folder of a CLIP or DINOv2, evaluate.judge; or leave out evaluate.every, pick and stop",
        )
    return (
        f"the images are {PHOTOGRAPHS}: the pocket base draws objects in flat colours on plain grounds, 64 px large, "
        "which shows that training runs, but not how your pictures would look; name a base for photos",
    )


def uncaptioned(wanted: Recipe, data: Dataset) -> tuple[str, ...]:
    """What captions would bring to pictures that have only the template."""
    if not all(e.origin in ("template", "folder") for e in data.examples):
        return ()
    vocabulary = "pocket" if shipped.is_pocket(wanted.base) else "YOURS.toml"
    step = action("caption", path=shipped.data_path(wanted.data.path), vocabulary=vocabulary)
    return (
        f"nobody captioned these {len(data.examples)} pictures: the template is used, in several wordings; captions "
        f"that name what differs (background, view) teach better, and {step} writes them",
    )
