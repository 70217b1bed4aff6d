"""Signals, a terminal that is closed (SIGHUP), a reader that leaves: save first, then stop, and say how to go on."""

import atexit
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from finetune import reading, references
from finetune.errors import Action, InputError, Interrupted, MemoryShortage, RunError, VerifyError, action
from finetune.events import Event
from finetune.reporting.status import resuming as resuming

Events = Generator[Event, None, None]
_SIGNALS = [int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""that end a run; Windows has no SIGHUP"""


class Interruption:
    """By a signal: at once outside the loop, after the current step inside. A second Ctrl-C is always at once. A second
    SIGTERM is not, as schedulers send it to the launcher and to each process."""

    def __init__(self, out: Path) -> None:
        self.out, self.asked, self._waits = out, False, False
        self._launcher = os.getppid() if "LOCAL_RANK" in os.environ else None
        self.begun = False
        """its recipe is in the folder: it can be resumed"""
        self.raised: Interrupted | None = None
        """what a signal raised; code of others, where it was raised, may have caught or wrapped it"""
        self.base = ""
        """in which its adapter is verified; empty in full fine-tuning, whose checkpoints are no adapters"""

    def error(self, step: int) -> Interrupted:
        said = f"stopped after step {step}; the state is saved"
        return Interrupted(said, action=resuming(self.out), other=self._as_it_is())

    def wanted(self) -> bool:
        """Was this process asked to stop, or left by the launcher that started it?"""
        return self.asked or (self._launcher is not None and os.getppid() != self._launcher)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Errors of the run's end say how its adapter is exported from the state that was saved."""
        saved = ("the trained state is saved", resuming(self.out))
        try:
            yield
        except OSError as e:
            said = f"the run is trained, and its result cannot be written: {e.filename or self.out}: {e.strerror or e}"
            raise RunError(said, "free some space, then resume", resuming(self.out), self._as_it_is()) from e
        except (InputError, MemoryShortage, VerifyError) as e:
            raise type(e)(e.problem, e.hint, e.action, e.other or self._as_it_is() or saved) from e

    def heard(self, number: int = signal.SIGINT, *_: object) -> None:
        if self._waits and not (self.asked and number == signal.SIGINT):
            self.asked = True
            return
        other = self._as_it_is()
        saved = other or reading.exists(self.out / references.CHECKPOINTS)
        self.raised = Interrupted(
            "stopped" if saved else "stopped before the first checkpoint; encoded images stay cached",
            "" if self.begun else "start it again",
            resuming(self.out) if self.begun else None,
            other,
        )
        raise self.raised

    def _as_it_is(self) -> tuple[str, Action] | None:
        """The newest adapter that the run has, as a file."""
        found = references.steps(self.out) if self.begun and self.base else {}
        named = f"{self.out}@{max(found)}" if found else ""
        return ("its adapter so far", action("export", source=named, base=self.base)) if named else None

    def listening(self, events: Events) -> Events:
        """The same events. Signals are heard while the next one is made; while it is read they are the reader's own,
        and a KeyboardInterrupt thrown in by the reader counts as one. A reader that closes this, or a program that
        ends with it open, closes the run."""
        atexit.register(events.close)
        try:
            with closing(events):
                resume: Callable[[], Event | None] = partial(next, events, None)
                while True:
                    with handled(self.heard):
                        event = resume()
                    if event is None:
                        return
                    if self.raised:  # and caught on its way here
                        resume = partial(events.throw, self.raised)
                        continue
                    resume = partial(next, events, None)
                    try:
                        yield event
                    except KeyboardInterrupt:
                        resume = partial(self._interrupt, events)
        finally:
            atexit.unregister(events.close)

    def restored(self, events: Events) -> Events:
        """The same events; what a signal raised and others wrapped, as an import in another library may, is itself."""
        try:
            yield from events
        except BaseException as e:
            if self.raised and e is not self.raised and not isinstance(e, GeneratorExit):
                raise self.raised from e
            raise

    def _interrupt(self, events: Events) -> Event | None:
        try:
            self.heard()
        except Interrupted as e:
            return events.throw(e)
        return next(events, None)


@contextmanager
def handled(heard: Callable[..., None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call this inside, in the main thread; elsewhere they stay as they are."""
    kept: dict[int, Any] = {}
    try:
        for number in _heard_signals():
            kept[number] = signal.signal(number, heard)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _heard_signals() -> list[int]:
    """Those that end a run. One that is ignored, as SIGHUP is under nohup, stays so."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def follow(events: Events, listen: Callable[[Event], None]) -> Event | None:
    """Hand each event to a listener. Such signals stop the run while it listens, too. Returns the last event.

    Raises:
        Interrupted: by such a signal.
    """
    signals: list[int] = []
    last: Event | None = None
    with closing(events), handled(lambda number, _: signals.append(number)):
        resume: Callable[[], Event | None] = partial(next, events, None)
        while (event := resume()) is not None:
            last = event
            listen(event)
            heard = len(signals)  # one that comes from here on is seen at the next event
            resume = partial(events.throw, KeyboardInterrupt()) if heard else partial(next, events, None)
            del signals[:heard]
    return last
