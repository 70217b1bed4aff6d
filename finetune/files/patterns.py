"""Module name patterns of an adapter's configuration, which are regular expressions in PEFT, matched in bounded time.

PEFT's rule: a pattern matches a whole path or its ending at a dot, and the first that matches wins. Nearly all are
names, which are looked up; of the others only those are matched that cannot take exponential time.
"""

import re
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from finetune.errors import BaseError

_T = TypeVar("_T")
_NAME = re.compile(r"(\^?)((?:[\w-]|\\?\.)+)\$?")
_QUANTIFIER = re.compile(r"[*+?]|\{\d*,?\d*\}")
_CHOICES = 3
"""Quantifiers, and groups with alternatives, of one pattern: a path of n letters is tried in some n^3 ways."""
_MOST_LETTERS = 300
_MOST_EXPRESSIONS = 8
"""of one table; names may be as many as there are modules"""
_LONGEST_PATH = 160
"""of a module, that an expression is tried on: the longest in a known base has 70 letters"""


class ModulePatterns(NamedTuple, Generic[_T]):
    """What a table of pattern = value gives to modules."""

    names: Mapping[str, tuple[int, _T]]
    """an ending of paths -> (its place in the table, its value)"""
    whole: Mapping[str, tuple[int, _T]]
    """a whole path, likewise"""
    expressions: tuple[tuple[int, re.Pattern[str], _T], ...]

    def value(self, path: str, default: _T) -> _T:
        """What the first pattern that matches says."""
        found = [self.whole[path]] if path in self.whole else []
        parts = path.split(".")
        endings = (".".join(parts[n:]) for n in range(len(parts)))
        found += [self.names[ending] for ending in endings if ending in self.names]
        if len(path) <= _LONGEST_PATH:
            found += [(n, value) for n, expression, value in self.expressions if expression.match(path)]
        return min(found, key=lambda one: one[0])[1] if found else default


def patterns(table: Mapping[str, _T], where: str) -> ModulePatterns[_T]:
    """where: the file and the table, for errors.

    Raises:
        BaseError: a pattern is none, or could take for ever.
    """
    names: dict[str, tuple[int, _T]] = {}
    whole: dict[str, tuple[int, _T]] = {}
    expressions = []
    for n, (text, value) in enumerate(table.items()):
        if name := _NAME.fullmatch(text):
            (whole if name[1] else names).setdefault(name[2].replace("\\", ""), (n, value))
            continue
        check_pattern(text, where)
        expressions.append((n, re.compile(rf"(.*\.)?({text})$"), value))
    if len(expressions) > _MOST_EXPRESSIONS:
        raise BaseError(
            f"{where} has {len(expressions)} patterns that are no names, more than {_MOST_EXPRESSIONS}",
            "write module names in their place",
        )
    return ModulePatterns(names, whole, tuple(expressions))


def check_pattern(text: str, where: str) -> None:
    """Raises BaseError: it is no regular expression, or one that can take exponential time."""
    if len(text) > _MOST_LETTERS or not _is_bounded(text):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise BaseError(
            f"{where} {shown!r} is a pattern that can take for ever to match: refused",
            "write module names in its place",
        )
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as e:
        raise BaseError(f"{where} {text!r} is no pattern: {e}", "get the file again") from e


def _is_bounded(text: str) -> bool:
    """Few choices, none of them repeated, and no reference to what was matched before."""
    plain = re.sub(r"\\[1-9]", "*" * (_CHOICES + 1), text)  # a reference counts as too many
    plain = re.sub(r"\\.", "x", plain)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    choices, groups = 0, [False]
    at = 0
    while at < len(plain):
        if plain[at] == "(":
            groups.append(False)
            opening = re.compile(r"\(\?(P<\w+>|[:=!]|<[=!])").match(plain, at)
            at = opening.end() if opening else at + 1
            continue
        if quantifier := _QUANTIFIER.match(plain, at):
            choices += 1
            groups[-1] = True
            at = quantifier.end() + (plain[quantifier.end() : quantifier.end() + 1] in ("?", "+"))
            continue
        if plain[at] == "|":
            choices += not groups[-1]
            groups[-1] = True
        elif plain[at] == ")":
            chosen = groups.pop() if len(groups) > 1 else False
            if chosen and _QUANTIFIER.match(plain, at + 1):
                return False
            groups[-1] |= chosen
        at += 1
    return choices <= _CHOICES
