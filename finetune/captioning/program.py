"""Captions by any program: what it prints about a picture is the caption."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from finetune.captioning.captioner import Answer
from finetune.errors import DataError
from finetune.reading import real_path

IMAGE = "{image}"
TIMEOUT_S = 120.0
"""for one picture"""


class Program:
    """Calls a program for each picture, without a shell: `CMD {image}`, the file's path in place of `{image}`."""

    batch = 1

    def __init__(self, command: str, timeout_s: float = TIMEOUT_S) -> None:
        """Raises:
        DataError: no `{image}` in it, or quotes that do not close.
        """
        self.words, self.timeout_s = command_words(command, IMAGE), timeout_s

    def check(self, files: Sequence[Path]) -> None:
        refuse_absent(self.words)

    def __call__(self, files: Sequence[Path]) -> list[Answer]:
        return [self._of(file) for file in files]

    def _of(self, file: Path) -> Answer:
        return said_by([word.replace(IMAGE, str(real_path(file))) for word in self.words], self.timeout_s)


def command_words(command: str, *places: str) -> list[str]:
    """A command as a program and its arguments.

    Raises:
        DataError: one of the places is not in it, or quotes do not close.
    """
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise DataError(f"the command {command!r} cannot be read: {e}", "close its quotes") from e
    for place in places:
        if not any(place in word for word in words):
            raise DataError(f"the command {command!r} has no {place}", f"write {place} where the file's path belongs")
    return words


def refuse_absent(words: Sequence[str]) -> None:
    """Raises DataError: there is no such program."""
    if shutil.which(words[0]) is None:
        raise DataError(f"there is no program {words[0]!r}", "check its name, or give its full path")


def said_by(words: Sequence[str], timeout_s: float) -> Answer:
    """What a program prints, or why that is nothing."""
    try:
        done = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Answer("", f"the program took longer than {timeout_s:g} s")
    except OSError as e:
        return Answer("", f"the program cannot be run: {e.strerror}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        return Answer("", f"the program ended with exit code {done.returncode}: {last}")
    return Answer(done.stdout)
