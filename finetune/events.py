"""What a run tells whoever listens: the progress bar, events.jsonl, TensorBoard, a test."""

from pathlib import Path
from typing import NamedTuple


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


class Validated(NamedTuple):
    step: int
    loss: float
    bands: dict[str, float]
    """share of the noise path, as "0.1" -> loss there"""


class Saved(NamedTuple):
    step: int
    path: Path


class Resumed(NamedTuple):
    step: int
    path: Path


class Sampled(NamedTuple):
    step: int
    paths: tuple[Path, ...]


class Finished(NamedTuple):
    step: int
    outcome: str
    path: Path | None


Event = Note | Warned | Stage | Advanced | Stepped | Validated | Saved | Resumed | Sampled | Finished
