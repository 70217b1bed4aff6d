"""A run as JSON lines, one an event, for programs: events.jsonl."""

import json
import time
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.events import Advanced, Event
from finetune.reporting.fields import event_name


class JsonLines:
    """One line an event, appended; a line cut off by a kill or a full disk is ended first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._cut = True

    def __call__(self, event: Event) -> None:
        """Raises OSError: the disk is full, or gone."""
        if not isinstance(event, Advanced):
            if self._cut:
                self._end_line()
            self._cut = True
            self._append(json_line(event) + "\n")
            self._cut = False

    def _end_line(self) -> None:
        if reading.is_file(self.path) and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._append("\n")
        self._cut = False

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)


def json_line(event: Event) -> str:
    """An event with its name and the time."""
    line = {"event": event_name(type(event)), "time": round(time.time(), 3), **_plain(event)}
    return json.dumps(line, allow_nan=False)


def _plain(event: NamedTuple) -> dict[str, object]:
    """An event as JSON can say it; a number that is not finite becomes text, as JSON has none."""
    return {name: _json(value) for name, value in event._asdict().items()}


def _json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {k: _json(v) for k, v in value._asdict().items()}
    if isinstance(value, tuple):
        return [_json(v) for v in value]
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value
