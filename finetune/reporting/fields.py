"""Whether a line of a run's log is the event that it says it is: whoever reads one may trust its fields' types."""

import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from finetune import events

_NAME = re.compile(r"(?<!^)(?=[A-Z])")
"""before each capital but the first: TrainingEffect is training_effect"""
_NOT_FINITE = ("nan", "inf", "-inf")
"""numbers that JSON has not, as the log writes them"""
_LARGEST = 1 << 63


def event_name(kind: type) -> str:
    return _NAME.sub("_", kind.__name__).lower()


def is_event(name: str, values: Mapping[str, Any]) -> bool:
    """Fields may be absent, as earlier versions told less, all but the step. Of events that are not ours, which a later
    version may tell, nothing else is asked."""
    hints = _hints(_kinds().get(name, _Unknown))
    known = all(_fits(values[field], hint) for field, hint in hints.items() if field in values)
    return known and ("step" in values or name not in _kinds() or "step" not in hints)


class _Unknown(NamedTuple):
    step: int


@cache
def _kinds() -> dict[str, type]:
    return {event_name(kind): kind for kind in typing.get_args(events.Event)}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_whole(kind: type, values: object) -> bool:
    return isinstance(values, Mapping) and all(
        name in values and _fits(values[name], hint) for name, hint in _hints(kind).items()
    )


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON has there what the type is written as."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is not None:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if hasattr(hint, "_fields"):
        return _is_whole(hint, value)
    if hint is float:
        return value in _NOT_FINITE if isinstance(value, str) else isinstance(value, float) or _is_count(value)
    if hint is int:
        return _is_count(value) and value >= 0
    return isinstance(value, str if hint is Path else hint)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
