"""Texts that others will read, in files, pictures and trackers: no path of this machine, nothing that no reader takes.

`public` cleans a text, `leak` is the gate behind it: what has been cleaned passes.
"""

import getpass
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

from finetune import reading
from finetune.reporting.shown import CONTROLS

LEFT_OUT = "…"
"""stands where a path was, and where a text was cut"""
MOST_CHARACTERS = 2000
"""of a text: more is what no program shows, and no encoder reads"""
MOST_RECIPE_BYTES = 200 << 10
"""of a recipe in a file, whose header must have room for the names of all tensors as well"""
_BEFORE = r"(?:^|(?<=[\s\"'=:,(\[]))"
_ROOTS = r"/(?:home|Users|root|tmp|var|mnt|media|opt|srv|data|work|private|content|workspace|scratch)\b"
_LOCAL = re.compile(rf"{_BEFORE}(?:file://|~/|[A-Za-z]:\\|\\\\\w|{_ROOTS}|(?:/[\w.+-]+){{2,}})")
_PATH = re.compile(
    # more than the gate finds, which also sees texts in JSON, where one backslash is two
    rf"{_BEFORE}(?:file://|~/|[A-Za-z]:\\|\\{{1,2}}\w|{_ROOTS}|(?:/[\w.+-]+){{2,}})"
    r"[^\s\"']*(?:[ \t]+[^\s\"']*[/\\][^\s\"']*)*"  # words go on with the path where they have its separators
)
_SHORT_OR_COMMON = {"root", "user", "admin", "ubuntu", "localhost", "runner", "home", "default"}


class Public(NamedTuple):
    """A text as it may be published."""

    text: str
    removed: str = ""
    """what it had that others do not get, in words; "": nothing"""


def public(text: str, most: int = MOST_CHARACTERS) -> Public:
    """The text on one line, of at most that many characters, without paths and without characters that are none."""
    plain = " ".join(CONTROLS.sub("", " ".join(text.split())).split())
    removed = ["characters that cannot be shown"] if CONTROLS.search(" ".join(text.split())) else []
    if path := local_path(plain):
        removed.append(f"a path ({path[:40]})")
    if len(plain) > most:
        removed.append(f"all beyond its first {most:,} characters")
        return Public(_without_paths(plain[: most - 1]) + LEFT_OUT, " and ".join(removed))
    return Public(_without_paths(plain), " and ".join(removed))


def local_path(text: str) -> str:
    """The first path of this machine in a text; "" where there is none."""
    found, home = _PATH.search(text), str(reading.home() or "")
    if found:
        return found[0].strip()
    return home if len(home) > 1 and home in text else ""


def leak(text: str, written: str = "") -> str:
    """What a text must not publish, in words: a local path, or this machine's host or user name; "" where it has none.

    written: what the user wrote, where such a name is a word as any other.
    """
    path, home = _LOCAL.search(text), str(reading.home() or "")
    if path or (len(home) > 1 and home in text):
        return f"a local path ({path[0].strip() if path else home}...)"
    own = (name for name in _own_names() if _says(text, name) and not _says(written, name))
    return next((f"the name {name!r} of this machine or its user" for name in own), "")


def _without_paths(text: str) -> str:
    home = str(reading.home() or "")
    found = _PATH.sub(LEFT_OUT, text)
    return found.replace(home, LEFT_OUT) if len(home) > 1 else found


def _own_names() -> Iterable[str]:
    names = {socket.gethostname()}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError):  # a container's user may have no name
        pass
    return {name for name in names if len(name) >= 4 and name.lower() not in _SHORT_OR_COMMON}


def _says(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
