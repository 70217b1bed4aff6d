"""A command tried on hostile input in a forked child: its exit code, its words, and the memory it took."""

import faulthandler
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

MEMORY_BYTES = 2 << 30
"""beyond what the parent holds: more is a fault"""
HANGS_S = 120
"""after which a child is taken to hang: on an idle core none takes more than a few"""


class Attempt(NamedTuple):
    code: int
    """exit code; the negative signal that ended it"""
    out: str
    err: str
    peak_bytes: int
    """beyond what the parent held"""

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err or "Fatal Python error" in self.err


def attempt(arguments: Sequence[str | Path], folder: Path, stdin: bytes = b"", out: int | None = None) -> Attempt:
    """The command line in a child, started in `folder`; out: where its standard output goes, if not into a file."""
    return forked(lambda: command(arguments), folder, stdin, out)


def forked(work: Callable[[], None], folder: Path, stdin: bytes = b"", out: int | None = None) -> Attempt:
    """Any work, in the same way."""
    return _start(work, folder, "", stdin, out).wait()


@contextmanager
def children(arguments: Sequence[str | Path], folder: Path, number: int) -> "Iterator[Children]":
    """The same command, many times at once; what still runs in the end is killed."""
    started = Children([_start(lambda: command(arguments), folder, f".{n}") for n in range(number)])
    try:
        yield started
    finally:
        for pid in started.running():
            os.kill(pid, signal.SIGKILL)
        started.ended()


class Children:
    """Attempts that are under way."""

    def __init__(self, started: "Sequence[Child]") -> None:
        self._started, self._ended = started, dict[int, Attempt]()

    def running(self) -> list[int]:
        """Process ids."""
        for child in self._started:
            if child.pid not in self._ended and os.waitid(os.P_PID, child.pid, _LOOK):
                self._ended[child.pid] = child.wait()
        return [child.pid for child in self._started if child.pid not in self._ended]

    def ended(self) -> list[Attempt]:
        """All of them; waits."""
        for child in self._started:
            if child.pid not in self._ended:
                self._ended[child.pid] = child.wait()
        return list(self._ended.values())


_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_STREAMS = ("stdin", "stdout", "stderr")


class Child(NamedTuple):
    """A process, and the files that are its standard input and output."""

    pid: int
    files: dict[str, Path]
    held_bytes: int
    """by the parent"""

    def wait(self) -> Attempt:
        _, status, usage = os.wait4(self.pid, 0)
        out, err = (self.files[name].read_bytes().decode("utf-8", "replace") for name in _STREAMS[1:])
        grown = max(0, usage.ru_maxrss * 1024 - self.held_bytes)
        return Attempt(os.waitstatus_to_exitcode(status), out, err, grown)


def _start(
    work: Callable[[], None], folder: Path, name: str = "", stdin: bytes = b"", out: int | None = None
) -> Child:  # fmt: skip
    files = {stream: folder.parent / f"{folder.name}{name}.{stream}" for stream in _STREAMS}
    files["stdin"].write_bytes(stdin)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    child = os.fork()
    if child == 0:
        _run(work, folder, files, out)
    return Child(child, files, held)


def command(arguments: Sequence[str | Path]) -> None:
    sys.argv = ["finetune", *map(str, arguments)]
    from finetune import cli

    cli.main()


def _run(work: Callable[[], None], folder: Path, files: dict[str, Path], out: int | None) -> None:
    """Never returns."""
    code = 1
    signal.alarm(HANGS_S)  # nobody handles it: a child that hangs is killed, and its exit code says so
    try:
        for number, name in enumerate(files):
            opened = os.open(files[name], os.O_RDONLY if name == "stdin" else os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(out if name == "stdout" and out is not None else opened, number)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", errors=errors, buffering=1, closefd=False)
            for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
        )
        faulthandler.disable()
        os.chdir(folder)
        torch.set_num_threads(1)  # makes torch's pool anew before threads of others race for it
        _bound_memory()
        work()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:  # noqa: BLE001  (a child ends here, whatever it was)
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


def _bound_memory() -> None:
    """No more address space than MEMORY_BYTES beyond what is mapped now: a bomb is a MemoryError, and harms nobody."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
