"""What the files of an adapter are called: a name that every system, disk and command line takes."""

import re
from pathlib import Path

from finetune import reading
from finetune.reporting.shown import CONTROLS

MOST_BYTES = 100
"""of a name: with a step, an ending and what a half-written file is called by around it, it stays below 255"""
_FALLBACK = "adapter"
_NOT_ON_WINDOWS = re.compile(r'[<>:"/\\|?*]')
_DEVICES = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)
"""of Windows, whatever stands behind a dot"""


def exported_name(written: str | None, out: Path) -> str:
    """The name of what a run exports: the recipe's, else that of the folder `out`, as it can be a file's everywhere."""
    return file_name(_asked(written, out))


def file_name(wanted: str) -> str:
    """The nearest name that no system refuses, no shell takes for an option, and no listing hides."""
    plain = _NOT_ON_WINDOWS.sub("_", CONTROLS.sub("_", wanted.replace("\n", "_").replace("\t", "_")))
    short = plain.encode()[:MOST_BYTES].decode(errors="ignore")
    name = short.lstrip("-. ").rstrip(". ") or _FALLBACK
    stem, dot, rest = name.partition(".")
    return f"{stem}_{dot}{rest}" if _DEVICES.fullmatch(stem) else name


def renamed(written: str | None, out: Path) -> str:
    """A sentence where the files are called otherwise than was asked for; else empty."""
    wanted, name = _asked(written, out), exported_name(written, out)
    return "" if name == wanted else f"the adapter's files are called {name!r}: {wanted[:60]!r} is no name for a file"


def _asked(written: str | None, out: Path) -> str:
    return written or reading.real_path(out).name
