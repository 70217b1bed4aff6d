"""A run's page, written again and again while the run goes on: a listener as TensorBoard's is."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetune.errors import InputError, RunError
from finetune.events import Evaluated, Event, Finished, Sampled, Scored, Stage, Stepped, Validated, Warned
from finetune.pages.html import TEMPLATE_ERROR
from finetune.pages.report import Wording, write_report
from finetune.reporting.history import LOG
from finetune.reporting.jsonl import JsonLines
from finetune.reporting.owner import owner_of
from finetune.reporting.status import REPORT, is_run

_NEWS = (Sampled, Validated, Scored, Evaluated)
"""events after which the page has something new to show"""
_PAUSES = (Stepped, Stage, Finished)
"""events at which it is written: all that a step brings has been told by the next one"""
MOST_TIME = 0.05
"""most that writing the page may take of a run's time; at the run's end it is written whatever it takes"""
FAULTS = (
    InputError, OSError, ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError,
    TypeError, ValueError, TEMPLATE_ERROR,
)  # fmt: skip
"""all that may go wrong with a page: none of it may cost the run. An interruption is none of them, and gets through"""


def keep_verdict(run: Path, told: Evaluated, worded: Wording = str) -> Path | None:
    """Write a verdict that was asked for afterwards into a run's log, and the page again. Returns where that is; None:
    `run` is no run's folder, or the run still goes on and tells its own.

    Raises:
        RunError: they cannot be written.
    """
    if not is_run(run) or owner_of(run):
        return None
    try:
        JsonLines(run / LOG)(told)
    except OSError as e:
        raise RunError(f"cannot write into {run}: {e.strerror}", "free some space, or make it writable") from e
    return write_report(run, worded=worded)


class ReportWriter:
    """Writes RUN/report.html where a run has something new to show. worded: as for `write_report`; clock: seconds,
    rising."""

    def __init__(self, run: Path, worded: Wording = str, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self._worded = worded
        self._clock = clock
        self._news = True
        self._failed = False
        self.finished = False
        """it shows how the run ended"""
        self._rest = 0.0
        """until then it is not written again"""

    def __call__(self, event: Event) -> Warned | None:
        """A warning where the page could not be written: once, and then no more is tried until the end."""
        self._news = self._news or isinstance(event, _NEWS)
        if isinstance(event, Finished):
            return self.end()
        due = self._news and isinstance(event, _PAUSES) and not self._failed
        return self.write() if due and self._clock() >= self._rest else None

    def end(self) -> Warned | None:
        """For the last time. A page that cannot be written leaves none: an older one would say that the run goes on."""
        self.finished = True
        warned = self.write()
        if self._failed:
            with suppress(OSError):
                (self.run / REPORT).unlink()
        return warned

    def write(self) -> Warned | None:
        """Now, whatever it takes."""
        began, failed = self._clock(), self._failed
        try:
            write_report(self.run, worded=self._worded)
        except FAULTS as e:
            self._failed = True
            return None if failed else Warned(f"{self.run / REPORT} cannot be written: {e}; the run goes on without it")
        finally:
            ended = self._clock()
            self._rest = ended + (ended - began) / MOST_TIME
        self._news = self._failed = False
        return None
