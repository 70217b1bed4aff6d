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
        try:
            self.words = shlex.split(command)
        except ValueError as e:
            raise DataError(f"the command {command!r} cannot be read: {e}", "close its quotes") from e
        if not any(IMAGE in word for word in self.words):
            raise DataError(f"the command {command!r} has no {IMAGE}", f"write {IMAGE} where the file's path belongs")
        self.timeout_s = timeout_s

    def check(self, files: Sequence[Path]) -> None:
        if shutil.which(self.words[0]) is None:
            raise DataError(f"there is no program {self.words[0]!r}", "check its name, or give its whole path")

    def __call__(self, files: Sequence[Path]) -> list[Answer]:
        return [self._of(file) for file in files]

    def _of(self, file: Path) -> Answer:
        called = [word.replace(IMAGE, str(real_path(file))) for word in self.words]
        try:
            done = subprocess.run(
                called, capture_output=True, encoding="utf-8", errors="replace", timeout=self.timeout_s, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Answer("", f"the program took longer than {self.timeout_s:g} s")
        except OSError as e:
            return Answer("", f"the program cannot be run: {e.strerror}")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return Answer("", f"the program ended with exit code {done.returncode}: {last}")
        return Answer(done.stdout)
