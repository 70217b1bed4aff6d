"""`evaluate`: paint the fixed prompts from an adapter and from its base, score them, and say what came of it."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from finetune import families
from finetune import resources as shipped
from finetune.data.example import Dataset, Example
from finetune.data.images.decode import open_rgb
from finetune.evaluation import scores, verdict
from finetune.evaluation.gallery import Gallery, Painter
from finetune.evaluation.prompts import Asked, PromptSet, bare_caption, prompt_set
from finetune.evaluation.similarity import FeatureExtractor
from finetune.evaluation.subject import Subject
from finetune.evaluation.verdict import Measures
from finetune.events import Evaluated, Event, Score, Scored, Stage
from finetune.sampling.grid import grid, made_with, row_label
from finetune.sampling.png import write_png
from finetune.sampling.request import SampleRequest

DENOISING_STEPS = 10
"""denoising steps of a picture that is judged: it is painted twice as fast as one to look at, and as like"""
MOST_REAL = 48
"""training pictures that are compared with; of more, evenly spread ones"""
READS = 0.5
"""share of the training pictures whose caption a judge must find among all, to judge whether prompts are followed"""
CROPPED = 0.8
"""side of the crop that is compared as well, as a share of the picture's"""


class Painted(NamedTuple):
    """Pictures at the same prompts and seeds: the adapter's, and the base's."""

    with_trigger: list[Image.Image]
    without: list[Image.Image]


def evaluate(subject: Subject) -> Generator[Event, None, Evaluated]:
    """Paint, score and judge; the last event is Evaluated, which is returned too.

    Raises:
        BaseError: the judge cannot be used, or the base cannot be opened.
        RunError: the folder cannot be written.
        VerifyError: the adapter cannot be read whole for this base.
    """
    asked = asked_of(subject)
    found, ours, theirs = yield from _measured(subject, asked, None)
    sheet = _sheet(subject, asked, ours, theirs)
    told = verdict.judge(subject.path, asked, found, subject.training)._replace(sheet=sheet)
    yield told
    return told


def score(subject: Subject, step: int, painter: Painter) -> Generator[Event, None, Scored]:
    """The same of a run's candidate, painted by the model that is trained; the last event is Scored, which is returned.

    Raises: as `evaluate`.
    """
    asked = asked_of(subject)
    found, *_ = yield from _measured(subject, asked, painter)
    told = Scored(step, verdict.seen(asked.aim, found), found.scores)
    yield told
    return told


def asked_of(subject: Subject) -> PromptSet:
    """What is painted for a verdict on it."""
    return prompt_set(subject.training.data, shipped.is_pocket(subject.base), subject.count, subject.prompts)


def _measured(
    subject: Subject, asked: PromptSet, painter: Painter | None
) -> Generator[Event, None, tuple[Measures, list[Image.Image], list[Image.Image]]]:
    """What the judge makes of the pictures; the adapter's pictures, and the base's."""
    wanted = _requests(subject, [*asked.with_trigger, *asked.without])
    gallery = Gallery(subject.folder, subject.base, subject.path, subject.options, painter)
    ours, theirs = yield from gallery.paint(wanted, wanted)
    yield Stage("judging", 0)
    eyes = FeatureExtractor.load(subject.judge)
    found = measure_pictures(eyes, asked, _split(ours, asked), _split(theirs, asked), subject.training.data)
    return found, ours, theirs


def measure_pictures(
    eyes: FeatureExtractor, asked: PromptSet, ours: Painted, theirs: Painted, data: Dataset
) -> Measures:
    """What the judge makes of the pictures."""
    real = real_pictures(data)
    see = eyes.of_pictures if asked.aim == "product" else eyes.style_of_pictures
    likeness = scores.likeness_score(see(ours.with_trigger), see(theirs.with_trigger), see(real))
    shown, own = eyes.of_pictures(ours.with_trigger), eyes.of_pictures(real)
    found = {
        "likeness": likeness.score,
        **_drift(eyes, ours.without, theirs.without),
        "diversity": scores.diversity_score(shown, own),
        "memorisation": scores.memorisation_score(shown, own, torch.stack([eyes.of_pictures(v) for v in views(real)])),
    }
    if eyes.tokenizer is None or (asked.aim == "style" and not _reads(eyes, own, data)):
        return Measures(likeness, found, 0.0)
    words = eyes.of_captions([one.caption for one in asked.with_trigger])
    base = scores.prompt_score(eyes.of_pictures(theirs.with_trigger), words)
    return Measures(likeness, {**found, "prompt": scores.prompt_score(shown, words)}, base.value)


def _drift(eyes: FeatureExtractor, ours: list[Image.Image], theirs: list[Image.Image]) -> dict[str, Score]:
    """Nothing where there are not two pictures without the trigger."""
    if len(ours) < 2:
        return {}
    return {"drift": scores.drift_score(eyes.of_pictures(ours), eyes.of_pictures(theirs))}


def _reads(eyes: FeatureExtractor, real: Tensor, data: Dataset) -> bool:
    """Does the judge know what restyled pictures show? Enough training pictures must fit their own captions best."""
    words = eyes.of_captions([bare_caption(e.caption, data) for e in _compared(data)])
    return scores.prompt_score(real[: len(words)], words).value >= READS


def views(real: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """The pictures as they are, mirrored, and the middle of each."""
    return [list(real), [ImageOps.mirror(one) for one in real], [_middle(one) for one in real]]


def _middle(image: Image.Image) -> Image.Image:
    width, height = (round(side * CROPPED) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BICUBIC)


def real_pictures(data: Dataset) -> list[Image.Image]:
    """Those that are compared with, upright and in RGB. Raises DataError where one has changed meanwhile."""
    real = [open_rgb(example.path, digest=example.digest) for example in _compared(data)]
    return real if len(real) > 1 else [view[0] for view in views(real)]


def _compared(data: Dataset) -> tuple[Example, ...]:
    return data.examples[:: -(-len(data.examples) // MOST_REAL)]


def _requests(subject: Subject, asked: Sequence[Asked]) -> list[SampleRequest]:
    facts = families.detect(subject.base)
    side = (subject.resolution or facts.resolution) // facts.stride * facts.stride
    guidance = facts.guidance if subject.guidance is None else subject.guidance
    return [SampleRequest(one.prompt, one.seed, "", DENOISING_STEPS, guidance, side, side) for one in asked]


def _split(pictures: list[Image.Image], asked: PromptSet) -> Painted:
    count = len(asked.with_trigger)
    return Painted(pictures[:count], pictures[count:])


def _sheet(subject: Subject, asked: PromptSet, ours: list[Image.Image], theirs: list[Image.Image]) -> Path:
    shown = [one.prompt for one in (*asked.with_trigger, *asked.without)]
    path = subject.folder / f"sheet-{subject.path.stem}.png"
    rows = [(row_label("base", ""), theirs), (row_label("adapter", subject.path.name), ours)]
    title = f"Judged: {subject.path.name}, and the base model, at the same prompts and seeds"
    request, base = _requests(subject, asked.with_trigger)[0], shipped.public_name(subject.base)
    page = grid(rows, shown, title, made_with(base, request.steps, request.guidance))
    write_png(page, path, {"prompt": " | ".join(shown), "base": base, "adapter": subject.path.name})
    return path
