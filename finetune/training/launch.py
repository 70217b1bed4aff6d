"""Ranks on one machine: the same command, once for each of them.

torch elastic's launcher gives a rank 30 seconds to save, answers 1 to every failure and prints forty lines about it.
Here a rank has minutes, and the first one that fails gives the exit code and the sentence.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO, NamedTuple

import torch

from finetune.errors import RunError
from finetune.machine import has_gpu
from finetune.training.stop import handled

ALONE_SECONDS, SAVE_SECONDS = 20, 300
"""that the others have after one has failed: to notice it, and to save when they are asked to stop"""
_LAST_LINES = 20
_PDEATHSIG = 1
"""prctl's, of Linux: the signal that a process gets when its parent ends"""


class Ended(NamedTuple):
    rank: int
    code: int
    """exit code; less than 0: the signal that ended it"""

    @property
    def exit_code(self) -> int:
        return self.code if self.code >= 0 else 128 - self.code


def launch(ranks: int, command: Sequence[str], say: Callable[[str], None]) -> int:
    """Start the command once for each rank, and wait for all of them. Ctrl-C, SIGTERM and SIGHUP are theirs.
    say: writes a sentence to the user.

    Returns: the exit code of the first that failed, 0 where none did; of one that a signal ended 128 + its number.

    Raises:
        RunError: this machine has fewer GPUs.
    """
    if has_gpu() and ranks > torch.cuda.device_count():
        raise RunError(f"{ranks} GPUs are asked for, and this machine has {torch.cuda.device_count()}", "ask for fewer")
    if not has_gpu():
        say(f"no GPU here: {ranks} processes share the CPU")
    with ExitStack() as files:
        # what ranks beside the first say is shown only where one of them fails first
        said: list[IO[bytes] | None] = [None]
        said += [files.enter_context(tempfile.TemporaryFile()) for _ in range(ranks - 1)]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        started: list[subprocess.Popen[bytes]] = []

        def passed_on(number: int, _: object) -> None:
            # a terminal sends Ctrl-C to each process itself
            _tell(started, signal.SIGINT if number == signal.SIGINT and not sys.stdin.isatty() else number)

        with handled(passed_on):
            started += [_started(command, rank, ranks, place, errors) for rank, errors in enumerate(said)]
            first = _first_failure(started)
            if first is None:
                return 0
            _end(started)
        errors = said[first.rank]
        if errors is not None:
            errors.seek(0)
            for line in errors.read().decode(errors="replace").splitlines()[-_LAST_LINES:]:
                say(f"rank {first.rank}: {line}")
        if first.code < 0:
            say(f"error: rank {first.rank} was ended by {signal.Signals(-first.code).name}")
        return first.exit_code


def _started(
    command: Sequence[str], rank: int, ranks: int, place: dict[str, str], errors: IO[bytes] | None
) -> subprocess.Popen[bytes]:  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // ranks))
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads}
    size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    output = subprocess.DEVNULL if errors else None
    return subprocess.Popen(
        command, env={**os.environ, **place, **size, **own}, stdout=output, stderr=errors,
        preexec_fn=_ends_with_its_parent if sys.platform == "linux" else None,
    )  # fmt: skip


def _ends_with_its_parent() -> None:
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


def _first_failure(started: Sequence[subprocess.Popen[bytes]]) -> Ended | None:
    """Wait until one has failed, or all have ended well."""
    while True:
        codes = [process.poll() for process in started]
        failed = [Ended(rank, code) for rank, code in enumerate(codes) if code]
        if failed:
            # those that a fault of another's ends come after it, or in the same moment with a sentence of their own
            return min(failed, key=lambda one: (one.code >= 0, one.rank))
        if None not in codes:
            return None
        time.sleep(0.1)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """The others notice by themselves, else are asked to save and stop, else are killed."""
    for number, seconds in ((None, ALONE_SECONDS), (signal.SIGTERM, SAVE_SECONDS), (signal.SIGKILL, None)):
        if number is not None:
            _tell(started, number)
        end = None if seconds is None else time.monotonic() + seconds
        while any(process.poll() is None for process in started):
            if end is not None and time.monotonic() > end:
                break
            time.sleep(0.1)
        else:
            return


def _tell(started: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
