"""Conditions on the rows of a table, such as `aesthetic > 5` or `lang == en`: read as data, and never run."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from finetune.errors import DataError

_WRITTEN = re.compile(r"\s*(?P<column>[^\s=!<>]+|`[^`]+`)\s*(?P<sign>==|!=|<=|>=|<|>|=)\s*(?P<value>.*?)\s*", re.DOTALL)
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
_ORDERED = ("<", "<=", ">", ">=")
_TRUTH = {"true": True, "false": False}


class Condition(NamedTuple):
    written: str
    column: str
    sign: str
    value: str


def condition(written: str) -> Condition:
    """Raises DataError: it is not a column, a comparison and a value."""
    hint = "write a column, a comparison (== != < <= > >=) and a value: 'aesthetic > 5', 'lang == en'"
    found = _WRITTEN.fullmatch(written)
    if not found:
        raise DataError(f"`where` {written!r} is not a condition", hint)
    value = found["value"]
    quoted = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"", value)
    if not value or (not quoted and re.search(r"[=<>'\"]|\b(and|or)\b|&|\|", value)):
        raise DataError(f"`where` {written!r} is not a condition", f"{hint}; for several give `where` several times")
    sign, text = found["sign"], (quoted[1] if quoted[1] is not None else quoted[2]) if quoted else value
    if sign in _ORDERED and _number(text) is None:
        raise DataError(f"`where` {written!r}: {text!r} is not a number, and {sign} compares numbers", hint)
    return Condition(written, found["column"].strip("`"), sign, text)


def all_hold(conditions: Sequence[Condition], cells: Mapping[str, object], where: str) -> bool:
    """Of a row. An empty cell fulfils no condition. where: the row, for messages.

    Raises:
        DataError: a cell is no number, and is compared as one.
    """
    return all(_holds(one, cells[one.column], where) for one in conditions)


def _holds(one: Condition, cell: object, where: str) -> bool:
    if cell is None or cell == "":
        return False
    if isinstance(cell, bool):
        if one.value.lower() not in _TRUTH:  # as every number is: what < or > compares
            raise DataError(f"{where}: `{one.column}` is true or false", f"write {one.column} == true")
        return _SIGNS[one.sign](cell, _TRUTH[one.value.lower()])
    number, wanted = _number(cell), _number(one.value)
    if one.sign in _ORDERED and number is None:
        raise DataError(
            f"{where}: `{one.column}` is {str(cell)[:40]!r}, and {one.written!r} compares numbers",
            "compare it with == or !=, or another column",
        )
    if number is not None and wanted is not None:
        return _SIGNS[one.sign](number, wanted)
    return _SIGNS[one.sign](str(cell), one.value)


def _number(cell: object) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None
