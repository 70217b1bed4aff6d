"""What a verdict is asked about: an adapter, its base, its training pictures, and what is known of its training."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import reading, references
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.data.dataset import read_dataset
from finetune.data.example import Dataset
from finetune.data.photographic import PHOTOGRAPHS, are_photographs
from finetune.errors import BaseError, InputError
from finetune.evaluation.held_out import HELD_OUT
from finetune.evaluation.said import SaidRecipe, said_in
from finetune.evaluation.verdict import Training
from finetune.events import CaptionFit, Score, TrainingEffect
from finetune.files import layouts
from finetune.recipe import bounds
from finetune.references import EVALUATION as EVALUATION
from finetune.reporting.history import RECIPE_FILE, read_history
from finetune.sampling.request import SessionOptions

_STEPS_OF_RUN = (references.CANDIDATES, references.CHECKPOINTS)
UNJUDGED = "whether it was learnt is not judged"
"""in every note that says why there is no verdict"""
COUNT, FEWEST = 10, 4
"""pictures with the trigger: so many where time allows, and at least so many"""


def session_options(
    base_bits: int | None = None, text_encoder_bits: int | None = None, prediction: str = ""
) -> SessionOptions:
    """How the base is opened for a verdict: alike at the end of a run and by command, so that pictures are shared."""
    return SessionOptions(
        base_bits=base_bits, text_encoder_bits=text_encoder_bits, safety_checker=False, prediction=prediction
    )


_OPENED = session_options()


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
    options: SessionOptions = _OPENED


def of_path(
    what: Path, base: str = "", data: Path | None = None, judge: Path | None = None, count: int | None = None
) -> Subject:
    """Of a run's folder, a step of it (RUN@500), or an adapter file; arguments win over what run and file say.

    Raises:
        BaseError: no adapter there, or no base is known.
        DataError: the training pictures cannot be read.
        InputError: the training pictures, or a judge of this base's pictures, must be named.
    """
    path = references.adapter_path(what)
    run = references.run_of(path)
    file = exported(run) if run and path == run else path
    hint = "name an adapter file by itself, with `base` and `data`"
    text = reading.read_text(run / RECIPE_FILE, BaseError, hint) if run else recipe_in(file)
    said = said_in(text, str(run / RECIPE_FILE if run else file))
    bounds.check("evaluate.count", count, "count")
    base = base or said.value("base", str) or ""
    if not base:
        raise BaseError(f"{file} does not say what base it was made for", "name it: `base`")
    pictures = _pictures(said, data, run is not None, file)
    named = said.value("evaluate.judge", str) if run else None
    judge = judge or (Path(named) if named else None)
    seen_by = judge_for(base, judge, pictures)
    if seen_by is None:
        raise InputError(*unjudged(base))
    return Subject(
        file, base, training_of(said, pictures, run, _step(file)),
        run / EVALUATION if run else file.parent / f"{file.stem}-{EVALUATION}", seen_by,
        count or said.value("evaluate.count", int) or _count(run) or COUNT, said.texts("evaluate.prompts"),
        said.value("data.resolution", int), said.value("sample.guidance", float),
        session_options(
            said.value("train.base_bits", int), said.value("data.text_encoder_bits", int),
            said.value("objective.prediction", str) or "",
        ),
    )  # fmt: skip


def exported(run: Path) -> Path:
    """The file that a run exported; of a run of all weights its pipeline.

    Raises:
        BaseError: it has not come so far.
    """
    made = sorted((run / "adapter").glob("*.safetensors")) + [
        p.parent for p in (run / "adapter").glob("*/model_index.json")
    ]
    return made[0] if made else layouts.adapter_in(run)


def recipe_in(file: Path) -> str:
    """The recipe that an adapter file carries, or what it says of its base, as TOML; empty where it says nothing."""
    if reading.is_dir(file):
        return ""
    found = weights.read_header(file).metadata
    base = f"base = {json.dumps(found['finetune.base'])}\n" if "finetune.base" in found else ""
    return found.get("finetune.recipe") or base


def _pictures(said: SaidRecipe, named: Path | None, own: bool, file: Path) -> Dataset:
    own_path = said.value("data.path", str) if own else None
    path = named or (Path(own_path) if own_path else None)
    if path is None:
        raise InputError(
            f"{file} lies in no run's folder: what was it trained on?",
            "name the folder of its training pictures: `data`",
        )
    return read_dataset(
        shipped.data_path(path), trigger=said.value("data.trigger", str), class_word=said.value("data.class_word", str),
        allow_uncaptioned=bool(said.value("data.allow_uncaptioned", bool)),
    )  # fmt: skip


def judge_for(base: str, named: Path | None, data: Dataset) -> Path | None:
    """The judge that was named; of the pocket base's pictures the pocket eyes. They know no photographs: None."""
    if named or not shipped.is_pocket(base):
        return named
    return None if are_photographs(data.examples) else shipped.EYES


def unjudged(base: str) -> tuple[str, str]:
    """Why there is no verdict, and what to do."""
    if shipped.is_pocket(base):
        why = f"the training images are {PHOTOGRAPHS}, and the pocket base's judge knows flat drawings only"
    else:
        why = f"pictures of {shipped.public_name(base)} need a judge that knows photos"
    return (
        f"{UNJUDGED}: {why}",
        "name the folder of a CLIP or DINOv2 in transformers' layout: `judge`, or evaluate.judge in the recipe",
    )


def _step(file: Path) -> int | None:
    """Of a run's step that is not its last: in candidates or checkpoints."""
    inside = next((one for one in (file, file.parent) if one.parent.name in _STEPS_OF_RUN), None)
    return references.step_of(inside) if inside else None


def training_of(said: SaidRecipe, data: Dataset, run: Path | None = None, step: int | None = None) -> Training:
    """From a recipe and from the events of the run; step: the one to speak of, if not the last. Raises BaseError: the
    recipe says what none says.
    """
    steps = step or said.value("train.steps", int) or 0
    samples = steps * (said.value("train.batch", int) or 1) * (said.value("train.accumulate", int) or 1)
    return Training(
        data,
        samples / len(data.examples) if samples else None,
        said.texts("adapter.components") or (("denoiser",) if said.tables else ()),
        said.value("optimizer.learning_rate", float),
        _effect(run) if step is None else None,
        _held_out(run) if step is None else {},
    )


def _effect(run: Path | None) -> TrainingEffect | None:
    """What the run itself measured, as its log has it."""
    last = _told(run, "training_effect")
    if last is None or not set(TrainingEffect._fields) <= last.keys():
        return None
    base_fit, adapted_fit = (last[key] and CaptionFit(**last[key]) for key in ("base_fit", "adapted_fit"))
    return TrainingEffect(last["base"], last["adapted"], base_fit, adapted_fit, last["weights"], last["output"])


def _count(run: Path | None) -> int:
    """Pictures with the trigger that the run's own verdict was told from; 0: there is none."""
    seen = re.fullmatch(r"[0-9]+/([0-9]{1,6})", str((_told(run, "evaluated") or {}).get("seen", "")))
    return int(seen[1]) if seen else 0


def _held_out(run: Path | None) -> dict[str, Score]:
    """As the verdict at the run's end had them."""
    scores = (_told(run, "evaluated") or {}).get("scores", {})
    return {name: Score(**score) for name, score in scores.items() if name.startswith(HELD_OUT)}


def _told(run: Path | None, event: str) -> Mapping[str, Any] | None:
    """What a run last said by that name at its end; a verdict that was asked for afterwards is not its own."""
    events = read_history(run).events if run else ()
    last = max((n for n, one in enumerate(events) if one.name in ("stepped", "resumed")), default=-1)
    return next((one.values for one in events[last + 1 :] if one.name == event), None)
