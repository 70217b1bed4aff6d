"""`evaluate`: paint the fixed prompts from an adapter and from its base, score them, and say what came of it."""

import json
import tomllib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from finetune import families
from finetune import resources as shipped
from finetune.data.decode import open_rgb
from finetune.data.example import Dataset, Example
from finetune.errors import InputError
from finetune.evaluation import scores, verdict
from finetune.evaluation.gallery import Gallery
from finetune.evaluation.prompts import Asked, PromptSet, bare_caption, prompt_set
from finetune.evaluation.similarity import FeatureExtractor
from finetune.evaluation.verdict import Measures, Training
from finetune.events import CaptionFit, Evaluated, Event, Stage, TrainingEffect
from finetune.sampling.grid import grid
from finetune.sampling.png import write_png
from finetune.sampling.request import SampleRequest, SessionOptions

_PLAIN_BASE = SessionOptions(safety_checker=False)
FOLDER = "evaluation"
"""in a run's folder: the pictures, their sheet and the verdict"""
DENOISING_STEPS = 10
"""denoising steps of a picture that is judged: it is painted twice as fast as one to look at, and as like"""
COUNT, FEWEST = 10, 4
"""pictures with the trigger: so many where time allows, and at least so many"""
MOST_REAL = 48
"""training pictures that are compared with; of more, evenly spread ones"""
READS = 0.5
"""share of the training pictures whose caption a judge must find among all, to judge whether prompts are followed"""
CROPPED = 0.8
"""side of the crop that is compared as well, as a share of the picture's"""


@dataclass(frozen=True)
class Subject:
    """An adapter to judge, and all that its verdict depends on."""

    path: Path
    """the adapter file, a PEFT folder, or a whole pipeline's folder"""
    base: str
    training: Training
    folder: Path
    """where pictures and verdict are kept"""
    judge: Path
    """folder of a CLIP or a DINOv2"""
    count: int = COUNT
    prompts: tuple[str, ...] = ()
    resolution: int | None = None
    """px; the base's own unless said"""
    guidance: float | None = None
    options: SessionOptions = _PLAIN_BASE


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
    data = subject.training.data
    asked = prompt_set(data, is_pocket(subject.base), subject.count, subject.prompts)
    wanted = _requests(subject, [*asked.with_trigger, *asked.without])
    ours, theirs = yield from Gallery(subject.folder, subject.base, subject.path, subject.options).paint(wanted, wanted)
    yield Stage("judging", 0)
    eyes = FeatureExtractor.load(subject.judge)
    found = measure_pictures(eyes, asked, _split(ours, asked), _split(theirs, asked), data)
    sheet = _sheet(subject, asked, ours, theirs)
    told = verdict.judge(subject.path, asked, found, subject.training)._replace(sheet=sheet)
    yield told
    return told


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
        "drift": scores.drift_score(eyes.of_pictures(ours.without), eyes.of_pictures(theirs.without)),
        "diversity": scores.diversity_score(shown, own),
        "memorisation": scores.memorisation_score(shown, own, torch.stack([eyes.of_pictures(v) for v in views(real)])),
    }
    if eyes.tokenizer is None or (asked.aim == "style" and not _reads(eyes, own, data)):
        return Measures(likeness, found, 0.0)
    words = eyes.of_captions([one.caption for one in asked.with_trigger])
    base = scores.prompt_score(eyes.of_pictures(theirs.with_trigger), words)
    return Measures(likeness, {**found, "prompt": scores.prompt_score(shown, words)}, base.value)


def _reads(eyes: FeatureExtractor, real: Tensor, data: Dataset) -> bool:
    """Does the judge know what restyled pictures show? Half of the training pictures must fit their own captions best."""
    words = eyes.of_captions([bare_caption(e.caption, data) for e in _compared(data)])
    return scores.prompt_score(real, words).value >= READS


def views(real: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """The pictures as they are, mirrored, and the middle of each."""
    return [list(real), [ImageOps.mirror(one) for one in real], [_middle(one) for one in real]]


def _middle(image: Image.Image) -> Image.Image:
    width, height = (round(side * CROPPED) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BICUBIC)


def real_pictures(data: Dataset) -> list[Image.Image]:
    """Those that are compared with, upright and in RGB."""
    real = [open_rgb(example.path) for example in _compared(data)]
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
    path = subject.folder / "sheet.png"
    write_png(grid([("base", theirs), (subject.path.stem, ours)], shown), path, {"prompt": " | ".join(shown)})
    return path


def is_pocket(base: str) -> bool:
    return Path(shipped.base_path(base)).resolve() == shipped.POCKET.resolve()


def judge_for(base: str, named: Path | None) -> Path:
    """The judge that was named; of the pocket base's pictures the pocket eyes, which know no others.

    Raises:
        InputError: none was named, and none of ours sees what this base paints.
    """
    if named is not None:
        return named
    if is_pocket(base):
        return shipped.EYES
    raise InputError(
        f"likeness was not judged: pictures of {shipped.public_name(base)} need a judge that knows photos",
        "name the folder of a CLIP or DINOv2 in transformers' layout: `judge`, or evaluate.judge in the recipe",
    )


# --- what is known of a run ------------------------------------------------------------------------------------------


def training_of(recipe_text: str, data: Dataset, run: Path | None = None) -> Training:
    """From a recipe as it was resolved, such as a run or an adapter file holds, and from the events of the run."""
    said: dict[str, Any] = tomllib.loads(recipe_text)
    train, adapter = said.get("train", {}), said.get("adapter", {})
    samples = train.get("steps", 0) * train.get("batch", 1) * train.get("accumulate", 1)
    return Training(
        data,
        samples / len(data.examples) if samples else None,
        tuple(adapter.get("components", ("denoiser",))) if said else (),
        said.get("optimizer", {}).get("learning_rate"),
        _effect(run),
    )


def _effect(run: Path | None) -> TrainingEffect | None:
    """What the run itself measured, as its log has it."""
    file = run / "events.jsonl" if run else None
    if file is None or not file.is_file():
        return None
    told = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if '"training_effect"' in line]
    if not told:
        return None
    fits = [None if (fit := told[-1][key]) is None else CaptionFit(**fit) for key in ("base_fit", "adapted_fit")]
    return TrainingEffect(
        *(told[-1][key] for key in ("base", "adapted")), *fits, told[-1]["weights"], told[-1]["output"]
    )
