"""Standard output and error as they may be: closed meanwhile, on a full disk, or without the characters of a name."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from finetune.reporting.shown import only_colours

_GONE = (errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.ECONNRESET)
"""nobody reads it any more: `check | head`, or a terminal that was closed"""


class Guarded:
    """A stream whose reader may leave: what is written after that goes nowhere, and the work goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(only_colours(text)))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, work: Any) -> None:
        if self.failure is not None:
            return
        try:
            work()
        except OSError as e:
            self.failure = e
            with suppress(OSError, ValueError):  # what is still buffered must not fail when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    @property
    def lost(self) -> str:
        """Why something is missing that somebody may still read; empty: nothing is."""
        return "" if self.failure is None or self.failure.errno in _GONE else str(self.failure.strerror)


def _open_closed() -> None:
    """After `finetune ... >&-` the next file that is opened would be standard output, and be written into."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))


@contextmanager
def guarded() -> Iterator[Guarded]:
    """Both streams, inside. Gives standard output."""
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out, error = Guarded(before[0]), Guarded(before[1])
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, error)
    try:
        yield out
    finally:
        out.flush()
        error.flush()
        sys.stdout, sys.stderr = before
