"""A run's folder read back: what it said, how far it came and how it ended; whole, half-written or still running."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LOG, RECORD, RECIPE_FILE = "events.jsonl", "run.json", "recipe.toml"


class Told(NamedTuple):
    """An event as the log has it."""

    name: str
    """such as "stepped", or "training_effect\""""
    time: float
    """seconds since 1970"""
    values: Mapping[str, Any]
    """its fields; a number that was not finite is text"""


@dataclass(frozen=True)
class History:
    """What is known of a run."""

    folder: Path
    events: tuple[Told, ...]
    """in the order in which they were told; steps that a resumed run took again stand here once"""
    record: Mapping[str, Any]
    """run.json; empty when there is none yet"""
    recipe: Mapping[str, Any]
    """recipe.toml, with every value; empty when there is none yet"""
    damage: tuple[str, ...]
    """a sentence on each thing that could not be read"""

    def every(self, name: str) -> list[Told]:
        return [event for event in self.events if event.name == name]

    def last(self, name: str) -> Told | None:
        return next((event for event in reversed(self.events) if event.name == name), None)

    @property
    def outcome(self) -> str:
        """done, not learnt, failed, interrupted or running, as run.json says; "" before there is one."""
        return str(self.record.get("outcome", ""))

    @property
    def steps(self) -> int:
        """How many there will be; 0: not known."""
        found = self.record.get("steps", 0)
        return found if isinstance(found, int) else 0

    @property
    def step(self) -> int:
        """The last one taken."""
        last = self.last("stepped")
        return int(last.values["step"]) if last else 0


def read_history(folder: Path) -> History:
    """Never fails for what is in the files: what cannot be read is named in `damage`."""
    damage: list[str] = []
    events = tuple(_once(_events(folder / LOG, damage)))
    record = _read(folder / RECORD, json.loads, damage)
    recipe = _read(folder / RECIPE_FILE, tomllib.loads, damage)
    return History(folder, events, record, recipe, tuple(damage))


def _events(file: Path, damage: list[str]) -> Iterator[Told]:
    lines = _text(file, damage).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            yield Told(str(told.pop("event")), float(told.pop("time")), told)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            if number < len(lines):  # the last may be half-written
                damage.append(f"{file.name}, line {number} cannot be read")


def _once(events: Iterator[Told]) -> list[Told]:
    """Without what a run did past the step that it was resumed from, or before it was begun again."""
    kept: list[Told] = []
    last = 0
    for event in events:
        if event.name == "stepped":
            if _step(event) <= last:  # begun again in the same folder, whose log is kept
                kept = [one for one in kept if _step(one) < _step(event)]
            last = _step(event)
        if event.name == "resumed":
            step = event.values.get("step", 0)
            kept = [one for one in kept if _step(one) <= step]
            last = step if isinstance(step, int) else 0
        kept.append(event)
    return kept


def _step(event: Told) -> int:
    step = event.values.get("step", 0)
    return step if isinstance(step, int) else 0


def _read(file: Path, parse: Any, damage: list[str]) -> Mapping[str, Any]:
    text = _text(file, damage)
    try:
        found = parse(text) if text else {}
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    damage.append(f"{file.name} cannot be read")
    return {}


def _text(file: Path, damage: list[str]) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        damage.append(f"{file.name} cannot be read")
        return ""
