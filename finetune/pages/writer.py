"""A run's page, written again and again while the run goes on: a listener as TensorBoard's is."""

import time
from collections.abc import Callable
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.events import Evaluated, Event, Finished, Sampled, Scored, Stage, Stepped, Validated, Warned
from finetune.pages.html import TEMPLATE_ERROR
from finetune.pages.report import PAGE, write_report

_NEWS = (Sampled, Validated, Scored, Evaluated)
"""events after which the page has something new to show"""
_PAUSES = (Stepped, Stage, Finished)
"""events at which it is written: all that a step brings has been told by the next one"""
MOST_TIME = 0.05
"""most that writing the page may take of a run's time; at the run's end it is written whatever it takes"""
FAULTS = (
    FinetuneError, OSError, ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError,
    TypeError, ValueError, TEMPLATE_ERROR,
)  # fmt: skip
"""all that may go wrong with a page: none of it may cost the run"""


class ReportWriter:
    """Writes RUN/report.html where a run has something new to show. clock: seconds, rising."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self._clock = clock
        self._news = True
        self._failed = False
        self.finished = False
        """it shows the run's result"""
        self._rest = 0.0
        """until then it is not written again"""

    def __call__(self, event: Event) -> Warned | None:
        """A warning where the page could not be written: once, and then no more is tried until the end."""
        self._news = self._news or isinstance(event, _NEWS)
        if isinstance(event, Finished):
            self.finished = True
            return self.write()
        due = self._news and isinstance(event, _PAUSES) and not self._failed
        return self.write() if due and self._clock() >= self._rest else None

    def write(self) -> Warned | None:
        """Now, whatever it takes."""
        began = self._clock()
        try:
            write_report(self.run)
        except FAULTS as e:
            first, self._failed = not self._failed, True
            return Warned(f"{self.run / PAGE} cannot be written: {e}") if first else None
        finally:
            ended = self._clock()
            self._rest = ended + (ended - began) / MOST_TIME
        self._news = False
        return None
