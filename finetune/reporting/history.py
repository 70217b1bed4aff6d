"""A run's folder read back: what it said, how far it came and how it ended; whole, half-written or still running."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finetune import reading
from finetune.errors import RunError
from finetune.reporting.fields import is_event

_LOG_BYTES = 1 << 29
"""of a log: a million steps have 200 MB"""
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
    record = _read(folder / RECORD, reading.json_table, damage)
    recipe = _read(folder / RECIPE_FILE, reading.toml_table, damage)
    return History(folder, events, record, recipe, tuple(damage))


def _events(file: Path, damage: list[str]) -> Iterator[Told]:
    lines = _text(file, damage, _LOG_BYTES).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield _told(line)
        except RunError:
            if number < len(lines):  # the last may be half-written
                damage.append(f"{file.name}, line {number} cannot be read")


def _told(line: str) -> Told:
    """Raises RunError: it is no event."""
    values = reading.json_table(line, "", RunError, "", finite=False)
    name, time = values.pop("event", None), reading.finite_number(values.pop("time", None), "", RunError, "")
    if not isinstance(name, str) or not is_event(name, values):
        raise RunError("it is no event", "")
    return Told(name, time, values)


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


def _read(file: Path, parse: Callable[..., dict[str, Any]], damage: list[str]) -> Mapping[str, Any]:
    text = _text(file, damage, reading.CONFIG_BYTES)
    try:
        return parse(text, str(file), RunError, "") if text else {}
    except RunError:
        damage.append(f"{file.name} cannot be read")
        return {}


def _text(file: Path, damage: list[str], limit: int) -> str:
    """Lines that are no UTF-8 are read as far as they are: one half-written character costs one line."""
    if not reading.exists(file):
        return ""
    try:
        return reading.read_bytes(file, RunError, limit=limit).decode("utf-8", "replace")
    except RunError:
        damage.append(f"{file.name} cannot be read")
        return ""
