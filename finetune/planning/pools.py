"""Which pictures are trained on, held out, or shown beside as a prior; in which buckets, and for how long."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

from finetune.data import dataset
from finetune.data.dataset import Placed
from finetune.data.example import Dataset
from finetune.data.images.buckets import Bucket
from finetune.data.quality.advice import class_image_lines
from finetune.data.quality.class_images import finding_class_leaks
from finetune.data.rights.licences import allows
from finetune.data.rights.provenance import settled
from finetune.data.text.captions import clean_words, mentions, without_trigger
from finetune.diffusion import chance as draws
from finetune.errors import DataError, RecipeError
from finetune.events import Event
from finetune.planning.prompts import filled
from finetune.planning.schedule import Schedule, by_bucket
from finetune.planning.weights import WeightShare, repeats_of, shares
from finetune.recipe import ClassImages, OwnPrediction, Recipe, Validation
from finetune.recipe.tables import MOST_STEPS

DEFAULT_STEPS = 1000


class Pool(NamedTuple):
    """Examples that are scheduled together."""

    placed: tuple[Placed, ...]
    schedule: Schedule
    notices: tuple[str, ...] = ()
    """how their weights were understood, and which class images show the subject"""

    @property
    def weights(self) -> list[WeightShare]:
        """The pictures by weight; empty where an epoch shows each once."""
        return shares([p.example.attributes.weight for p in self.placed], self.schedule.repeats)


def hold_out(placed: list[Placed], wanted: Recipe) -> tuple[list[Placed], list[Placed]]:
    """(trained on, held out): the images that the dataset itself holds out, and where these are fewer than
    `validation.count`, others by chance that the seed decides.

    Raises:
        DataError: nothing is left to train on. RecipeError: nothing is held out, and validation.every is set.
    """
    count = wanted.validation.count
    if count >= len(placed):
        raise DataError(
            f"validation.count = {count} leaves nothing to train on: the dataset has {len(placed)} images",
            f"at most {len(placed) - 1}",
        )
    if not count and wanted.validation.every != Validation().every and not any(map(_is_declared, placed)):
        raise RecipeError(
            "validation.every: has no effect with validation.count = 0, as the dataset holds out no images itself",
            "set validation.count, or leave validation.every out",
        )
    declared = [i for i, p in enumerate(placed) if _is_declared(p)]
    if len(declared) == len(placed) > 0:
        raise DataError(
            f"the dataset holds out all of its {len(placed)} images: nothing is left to train on",
            "take `split` out of some rows of its metadata, or prepare it from other folders than validation",
        )
    others = [i for i, p in enumerate(placed) if not _is_declared(p)]
    drawn = draws.permutation(len(others), wanted.train.seed, "held out")[: max(0, count - len(declared))]
    chosen = {*declared, *(others[i] for i in drawn)}
    return [p for i, p in enumerate(placed) if i not in chosen], [p for i, p in enumerate(placed) if i in chosen]


def _is_declared(placed: Placed) -> bool:
    """The dataset itself holds it out."""
    return placed.example.attributes.held_out


def make_pool(placed: list[Placed], wanted: Recipe, world: int) -> Pool:
    """Examples by bucket, in the order in which they are shown. Raises DataError: their weights have no ratio."""
    numbers = {bucket: i for i, bucket in enumerate(sorted({p.bucket for p in placed}))}
    buckets = by_bucket([numbers[p.bucket] for p in placed])
    repeats = repeats_of([p.example.attributes.weight for p in placed])
    train = wanted.train
    schedule = Schedule(buckets, train.batch, train.accumulate, train.seed, world, repeats.counts)
    return Pool(tuple(placed), schedule, repeats.notices)


def prior_pool(
    wanted: Recipe, data: Dataset, buckets: Sequence[Bucket], world: int
) -> Generator[Event, None, Pool | None]:
    """Class images, scheduled like the others: a prior batch beside each training batch.

    Raises:
        RecipeError, DataError: the prior would hold the subject itself, or the same as the training images.
    """
    match wanted.prior:
        case ClassImages() as prior:
            classes = yield from _class_images(prior, data)
            shown = [
                e._replace(name=f"prior/{e.name}", role="prior", attributes=settled(e.attributes, classes.rights))
                for e in classes.examples
            ]
            pool = make_pool(dataset.assign_buckets(shown, buckets), wanted, world)
            leaks = yield from finding_class_leaks(data, classes)
            return pool._replace(notices=(*pool.notices, *class_image_lines(leaks)))
        case OwnPrediction():
            _check_own_prediction(data)
    return None


def _check_own_prediction(data: Dataset) -> None:
    if not data.trigger:
        raise RecipeError(
            'prior.mode = "own_prediction" compares captions with and without the trigger, and there is no trigger',
            "give data.trigger",
        )
    if all(without_trigger(e.caption, data.trigger, data.class_word) == e.caption for e in data.examples):
        raise RecipeError(
            f'prior.mode = "own_prediction": captions are the same without the trigger {data.trigger!r}',
            "another data.trigger than the class word",
        )


def _class_images(prior: ClassImages, data: Dataset) -> Generator[Event, None, Dataset]:
    written = filled("prior.prompt", prior.prompt, data) if prior.prompt else None
    prompt = written or (f"a photo of {data.class_word}" if data.class_word else None)
    if prompt is None:
        raise RecipeError("prior.prompt: missing, and there is no data.class_word to make it from")
    if mentions(prompt, data.trigger):
        raise RecipeError(f"prior.prompt {prompt!r} holds the trigger: it would preserve the subject", "leave it out")
    words = clean_words(None, None, prompt, captions_from="none", allow_uncaptioned=True)
    classes = yield from dataset.reading_dataset(prior.path, words)
    named = [e.name for e in classes.examples if mentions(e.caption, data.trigger)]
    if named:
        raise DataError(
            f"prior.path: captions of class images hold the trigger {data.trigger!r}: {', '.join(named[:3])}",
            "a prior shows the class without the subject: take the trigger out there",
        )
    refused = unlicensed(classes, data.card.require_license)
    if refused:
        asked = ", ".join(data.card.require_license)
        raise DataError(
            f"prior.path: {len(refused)} class images have none of the licences that data.path asks for ({asked}): "
            f"{', '.join(refused[:3])}",
            "prepare the class images with the same `require_license`",
        )
    known = {e.digest for e in data.examples}
    twins = [f"prior/{e.name}" for e in classes.examples if e.digest in known]
    if twins:
        raise DataError(f"prior.path holds images of the dataset itself: {', '.join(twins[:3])}", "remove them there")
    return classes


def unlicensed(data: Dataset, required: Sequence[str]) -> list[str]:
    """Names of pictures that have none of the licences; nobody where none is asked for."""
    held = ((e.name, settled(e.attributes, data.rights).license) for e in data.examples)
    return [name for name, licence in held if required and not allows(required, licence)]


def run_length(wanted: Recipe, schedule: Schedule) -> tuple[int, int]:
    """(micro-batches, optimizer steps) of the run. Raises RecipeError: its epochs are too many steps."""
    if (epochs := wanted.train.epochs) is not None:
        if (steps := schedule.steps_for(epochs)) > MOST_STEPS:
            raise RecipeError(
                f"train.epochs: {epochs} epochs are {steps:,} steps, and a run has at most {MOST_STEPS:,}", "fewer"
            )
        return epochs * schedule.micros_per_epoch, steps
    steps = wanted.train.steps or DEFAULT_STEPS
    return steps * schedule.micro_batches_per_step, steps
