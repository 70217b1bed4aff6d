"""REUSE.toml: licences and authors of many files in one table (reuse.software, specification 3.2).

Each holds for files in its own folder and below. In one file the last table wins that names a picture. `closest`, the
usual precedence, is for what a picture does not say itself, and the file nearest to it wins; `aggregate` adds to
that; `override` is all that counts, and the outermost wins.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from finetune import reading
from finetune.errors import DataError

REUSE_TOML = "REUSE.toml"
_PRECEDENCES = ("closest", "aggregate", "override")
_TOKENS = re.compile(r"\\.|(?:^|(?<=/))\*\*/|\*\*|\*|.", re.DOTALL)
"""`**/` is any folders, also none"""
_LONGEST = 1000
"""characters of a path with wildcards"""


class _Table(NamedTuple):
    home: str
    """The folder of its file, as `a/b/`."""
    paths: tuple[str, ...]
    precedence: str
    licenses: tuple[str, ...]
    authors: tuple[str, ...]


class ReuseTables(NamedTuple):
    """The tables of all files, from the outermost file inwards."""

    by_file: tuple[tuple[_Table, ...], ...]

    def of(self, picture: str, licenses: Sequence[str], authors: Sequence[str]) -> tuple[list[str], list[str]]:
        """(licences, authors) of a picture that says these itself."""
        found = [table for tables in self.by_file if (table := _last(tables, picture))]
        if outermost := next((one for one in found if one.precedence == "override"), None):
            return list(outermost.licenses), list(outermost.authors)
        nearest = [one for one in reversed(found) if one.precedence == "closest"]
        said = list(licenses or next((one.licenses for one in nearest if one.licenses), ()))
        whose = list(authors or next((one.authors for one in nearest if one.authors), ()))
        for one in found:
            if one.precedence == "aggregate":
                said += one.licenses
                whose += one.authors
        return list(dict.fromkeys(said)), list(dict.fromkeys(whose))


def read_reuse_tables(root: Path, names: Iterable[str], problems: list[str]) -> ReuseTables:
    """Of the REUSE.toml files among the names; what is wrong with one is added to the problems."""
    files = sorted((n for n in names if posixpath.basename(n) == REUSE_TOML), key=lambda n: n.count("/"))
    found = []
    for name in files:
        try:
            told = reading.read_toml(root / name, DataError, "correct it")
            found.append(tuple(_tables(told, name.removesuffix(REUSE_TOML))))
        except DataError as e:
            problems.append(e.problem.replace(str(root / name), name))
        except ValueError as e:
            problems.append(f"{name}: {e}")
    return ReuseTables(tuple(found))


def _tables(told: Mapping[str, Any], home: str) -> Iterable[_Table]:
    """Raises ValueError: it is not as the specification has it."""
    if told.get("version") != 1:
        raise ValueError(f"`version` is {told.get('version')!r}, and 1 is read; write version = 1")
    listed = told.get("annotations", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ValueError("`annotations` must be tables, each [[annotations]]")
    for number, one in enumerate(listed, 1):
        where = f"annotations {number}"
        paths = _texts(one.get("path"), f"{where}: `path`")
        if not paths or max(map(len, paths)) > _LONGEST:
            raise ValueError(f"{where}: `path` must name files, each in at most {_LONGEST} characters")
        if (precedence := one.get("precedence", "closest")) not in _PRECEDENCES:
            raise ValueError(f"{where}: `precedence` is {precedence!r}, and must be {', '.join(_PRECEDENCES)}")
        licenses, authors = (_texts(one.get(k), f"{where}: `{k}`") for k in _KEYS)
        yield _Table(home, paths, precedence, licenses, authors)


_KEYS = ("SPDX-License-Identifier", "SPDX-FileCopyrightText")


def _texts(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    listed = value if isinstance(value, list) else [value]
    texts = tuple(one.strip() for one in listed if isinstance(one, str) and one.strip())
    if len(texts) < len(listed):
        raise ValueError(f"{what} must be a text, or a list of texts")
    return texts


def _last(tables: Sequence[_Table], picture: str) -> _Table | None:
    if not tables or not picture.startswith(tables[0].home):
        return None
    name = picture[len(tables[0].home) :]
    return next((one for one in reversed(tables) if any(path_matches(path, name) for path in one.paths)), None)


def path_matches(path: str, name: str) -> bool:
    """Whether a file is meant: `*` is anything without a slash, `**` anything, a backslash takes a sign as it is."""
    tokens = _tokens(path)
    plain = next((n for n, token in enumerate(tokens) if len(token) != 1 or token == "*"), len(tokens))
    if not name.startswith("".join(tokens[:plain])):
        return False
    places = {plain}
    for token in tokens[plain:]:
        places = _after(token, name, places)
        if not places:
            return False
    return len(name) in places


def _after(token: str, name: str, places: set[int]) -> set[int]:
    """Where in the name what comes after the token may begin: a set, so that no pattern takes long."""
    if token == "**":
        return set(range(min(places), len(name) + 1))
    if token == "**/":
        return places | {n + 1 for n in range(min(places), len(name)) if name[n] == "/"}
    if token == "*":
        ends = set[int]()
        for place in sorted(places):
            if place not in ends:
                end = name.find("/", place)
                ends |= set(range(place, (end if end >= 0 else len(name)) + 1))
        return ends
    return {place + 1 for place in places if name[place : place + 1] == token[-1]}


@lru_cache(1024)
def _tokens(path: str) -> list[str]:
    return _TOKENS.findall(path.removeprefix("./"))
