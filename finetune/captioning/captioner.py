"""What a captioner is, and which of its answers are no captions: empty, looping and refusing ones."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

_WORD = re.compile(r"[^\W_]+")
_REFUSING = re.compile(
    r"\b(as an? (ai|artificial|language|text)|language model|i'?m (sorry|unable|not able)|i am (sorry|unable|not able)"
    r"|i (cannot|can'?t|can not|could not|couldn't|do not (see|have|know)|don't (see|have|know))"
    r"|unable to (see|view|describe|assist)|no image (was|is|has)|please (provide|upload|share))\b"
    r"|^\W*(sorry|unfortunately)\b",
    re.IGNORECASE,
)
_PREFIX = re.compile(
    r"^(sure|certainly|of course|here is|here's|caption|answer|description)\b[^:\n]{0,60}:\s*", re.IGNORECASE
)
REPEATS = 4
"""as often as this in a row a phrase is no longer said but repeated"""


class Answer(NamedTuple):
    """What a captioner says of a picture: a caption, or why there is none."""

    text: str
    problem: str = ""


class Captioner(Protocol):
    """A captioner is called with a few picture files, and answers in their order."""

    @property
    def batch(self) -> int:
        """How many pictures at a time."""

    def check(self, files: Sequence[Path]) -> None:
        """Looks at what it will be asked, before the first caption is written.

        Raises:
            FinetuneError: its captions would be worth nothing, or it cannot run at all.
        """

    def __call__(self, files: Sequence[Path]) -> list[Answer]: ...


def screened(answer: Answer) -> Answer:
    """The answer on one line and without chatter around it; with its problem, where it is no caption."""
    if answer.problem:
        return answer
    text = _PREFIX.sub("", " ".join(answer.text.replace("\u2019", "'").split())).strip(" \"'`*\u201c\u201d")
    return Answer(text, caption_fault(text))


def caption_fault(text: str) -> str:
    """Why a text is no caption, in a phrase; empty when it is one."""
    words = [word.lower() for word in _WORD.findall(text)]
    if not any(any(map(str.isalpha, word)) for word in words):
        return "empty"
    if _REFUSING.search(text):
        return "refuses"
    return "repeats itself" if _loops(words) else ""


def _loops(words: Sequence[str]) -> bool:
    """Whether a phrase of one to six words comes again and again, in a row."""
    for length in range(1, 7):
        run = 0
        for place in range(length, len(words)):
            run = run + 1 if words[place] == words[place - length] else 0
            if run == length * (REPEATS - 1):
                return True
    return False
