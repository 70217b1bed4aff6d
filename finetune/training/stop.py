"""SIGINT and SIGTERM: save first, then stop, and say how to go on."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import Interrupted


class Interruption:
    """SIGINT and SIGTERM: at once outside the loop, after the current step inside; a second one is always at once."""

    def __init__(self, out: Path) -> None:
        self.out, self.asked, self._waits = out, False, False

    def error(self, step: int) -> Interrupted:
        return Interrupted(f"stopped after step {step}; the state is saved", self.resume_command())

    def resume_command(self) -> str:
        return shlex.join(["finetune", "train", str(self.out / "recipe.toml"), "--out", str(self.out), "--resume"])

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def heard(self, *_: object) -> None:
        if self._waits and not self.asked:
            self.asked = True
            return
        saved, begun = (self.out / "checkpoints").exists(), (self.out / "run.json").exists()
        raise Interrupted(
            "stopped" if saved else "stopped before the first checkpoint; encoded images stay cached",
            self.resume_command() if begun else "the same command again",
        )


@contextmanager
def interruptible(out: Path) -> Iterator[Interruption]:
    """Handles signals while inside, in the main thread; elsewhere they stay as they are."""
    interruption = Interruption(out)
    kept: dict[int, Any] = {}
    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            kept[number] = signal.signal(number, interruption.heard)
    except ValueError:  # not the main thread
        pass
    try:
        yield interruption
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
