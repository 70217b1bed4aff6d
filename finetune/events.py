"""What a run yields, for whoever reads it: the progress bar, events.jsonl, TensorBoard, a notebook, a test."""

import functools
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar


class Note(NamedTuple):
    """A fact worth telling, once."""

    text: str


class Warned(NamedTuple):
    text: str


class Stage(NamedTuple):
    """A stretch of work begins; total counts what Advanced will count, 0 when unknown."""

    name: str
    total: int


class Advanced(NamedTuple):
    done: int


class Stepped(NamedTuple):
    """One optimizer step; losses are means over its samples on all ranks."""

    step: int
    steps: int
    loss: float
    prior_loss: float | None
    grad_norm: float
    rates: dict[str, float]
    """component -> the learning rate just applied"""
    seconds: float
    skipped: bool
    """the loss was not finite, and nothing was changed"""
    peak_bytes: int = 0
    """the most memory that the run has held until now: of the GPU, else of the process; 0: not known"""


class Validated(NamedTuple):
    step: int
    loss: float
    bands: dict[str, float]
    """share of the noise path, as "0.1" -> loss there"""


class Saved(NamedTuple):
    step: int
    path: Path


class Candidate(NamedTuple):
    """The adapter of a sampled step was written as a whole file, which RUN@STEP names from now on."""

    step: int
    path: Path


class Resumed(NamedTuple):
    step: int
    path: Path


class Sampled(NamedTuple):
    """Pictures of the recipe's prompts were generated."""

    step: int
    paths: tuple[Path, ...]
    """one for each prompt; at the end the sheet alone"""
    sheet: Path | None = None
    """all of them, titled"""


class CaptionFit(NamedTuple):
    """For how many images, of those tried, their own caption predicts them better than other images' captions."""

    share: float
    chance: float
    """the share that captions dealt out blindly would have"""


class TrainingEffect(NamedTuple):
    """What training did to the prediction of its own images, at fixed noise, with the base as the measure."""

    base: float
    """mean squared error"""
    adapted: float
    base_fit: CaptionFit | None
    """None: all captions are the same"""
    adapted_fit: CaptionFit | None
    weights: dict[str, float]
    """component -> |dW| / |W| over the weights that carry an adapter"""
    output: float
    """|with - without| / |without| of the prediction at seeded noise"""

    @property
    def gain(self) -> float:
        """Share of the base's loss that training took away."""
        return 1 - self.adapted / self.base


class WeightsChanged(NamedTuple):
    """Where training changed the model."""

    modules: Mapping[str, float]
    """canonical module name -> |dW| / |W| of its weight; without those whose weight is zero"""


class Verified(NamedTuple):
    """An exported file was opened in a fresh base, and does what was trained."""

    path: Path
    expected: int
    """modules"""
    hit: int
    live: float | None
    """worst module's difference to the trained one, relative to its change; None: not compared"""
    outputs: float | None
    """how far its outputs are from the trained model's, as a share of what training changed; None: not compared"""
    stock_output: float | None
    """how far those of stock diffusers are from our reader's, as such a share; None: the base is rounded to bfloat16"""
    findings: tuple[str, ...]
    """worth knowing, and no failure"""


class Score(NamedTuple):
    """A measure of generated pictures, with its bootstrap interval of 95 %."""

    value: float
    low: float
    high: float


class Scored(NamedTuple):
    """The adapter of this step was evaluated on the way: what the verdict would be told."""

    step: int
    seen: str
    """in how many prompts with the trigger the product or style is seen, such as 9/10"""
    scores: Mapping[str, Score]
    """name -> score; `finetune.evaluation.scores` says what each measures"""


class Picked(NamedTuple):
    """Which step's adapter the run exports, and why."""

    step: int
    reason: str


class Evaluated(NamedTuple):
    """The verdict on an adapter: was its product or style learnt? Told by pictures painted from the exported file and
    from the base, at the same prompts and seeds."""

    path: Path
    """the adapter"""
    learnt: bool
    seen: str
    """in how many prompts with the trigger the product or style is seen, such as 9/10"""
    scores: dict[str, Score]
    """name -> score; `finetune.evaluation.scores` says what each measures"""
    reasons: tuple[str, ...]
    """what speaks against it, the likeliest cause first, each with what to do"""
    text: str
    """the verdict in one sentence"""
    sheet: Path | None = None
    """the pictures that were judged: the base's and the adapter's, at the same seeds"""


class Finished(NamedTuple):
    """The last event of a run that did what it was asked for: its result."""

    step: int
    outcome: str
    path: Path
    """the proved file; for adapter.method = "full", the pipeline's folder"""
    sheet: Path
    """the last samples: the base's and the adapter's, at the same seeds"""
    report: Verified | None = None
    """None: for adapter.method = "full", which is read back and compared as a whole"""
    effect: TrainingEffect | None = None
    page: Path | None = None
    """the run's report, to open in a browser; None: it could not be written"""


Event = (
    Note | Warned | Stage | Advanced | Stepped | Validated | Saved | Candidate | Resumed | Sampled | TrainingEffect
    | WeightsChanged | Verified | Scored | Picked | Evaluated | Finished
)  # fmt: skip
Returned = TypeVar("Returned")
P = ParamSpec("P")


def quietly(procedure: Callable[P, Generator[object, None, Returned]]) -> Callable[P, Returned]:
    """The same as a call, whose events nobody reads."""

    @functools.wraps(procedure)
    def call(*arguments: P.args, **named: P.kwargs) -> Returned:
        return unheard(procedure(*arguments, **named))

    return call


def unheard(events: Generator[object, None, Returned]) -> Returned:
    """Let a procedure go through without reading its events. Returns what it returns."""
    while True:
        try:
            next(events)
        except StopIteration as e:
            returned: Returned = e.value
            return returned
