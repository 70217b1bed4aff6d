"""Who owns a run's folder: a lock on a file in it, which ends with its process, also when that is killed."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

from finetune import reading
from finetune.errors import RunError, action

LOCK = "run.lock"
"""the file in a run's folder, while a process owns it"""
_LOCK_BYTES = 4096
_TRIES, _PAUSE_S = 10, 0.02
"""A look at the lock holds it for an instant, too: whoever is in its way tries again."""


class Owner(NamedTuple):
    """The process that a run's folder belongs to, as it wrote itself down."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


class Ownership:
    """A run's folder, to be owned by this process alone from `take` to `release`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / LOCK
        self._descriptor: int | None = None

    def take(self) -> str:
        """Own the folder, which must be there. Returns "", or a warning where this disk has no locks.

        Raises:
            RunError: a living process owns it.
            OSError: the folder cannot be written.
        """
        while True:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            locked = _locked(descriptor, exclusive=True)
            if locked is False:
                os.close(descriptor)
                raise owned(self.file.parent, _read(self.file))
            if locked and not _same(descriptor, self.file):  # its last owner removed it meanwhile
                os.close(descriptor)
                continue
            self._descriptor = descriptor
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
            return "" if locked else _UNLOCKED.format(self.file.parent)

    def release(self) -> None:
        """Nobody's again. The file is removed while the lock is held: who waits for it sees that it is another one."""
        if self._descriptor is not None:
            with suppress(OSError):
                self.file.unlink()
            os.close(self._descriptor)
        self._descriptor = None


_UNLOCKED = (
    "the disk of {} has no file locks: nothing stops a second run from writing into the same folder, so start none"
)


def owner_of(folder: Path) -> Owner | None:
    """The living process that owns a run's folder; None: nobody does. Where the disk has no locks, the process that
    wrote itself down counts as living while it is, or when it is on another machine."""
    if not reading.is_file(folder / LOCK):  # a pipe would be waited for
        return None
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        locked = _locked(descriptor, exclusive=False)
    finally:
        os.close(descriptor)
    noted = _read(folder / LOCK)
    return None if locked or (locked is None and not _lives(noted)) else noted


def owned(folder: Path, owner: Owner) -> RunError:
    """What is said to a second process that wants the folder."""
    return RunError(
        f"{folder} belongs to a run that is going on: {owner}",
        "wait until it ends, stop it, or choose another `out`",
        other=("see how far it is", action("status", runs=folder)),
    )


def _locked(descriptor: int, exclusive: bool) -> bool | None:
    """Lock an open file; False: another process has the lock; None: there are no locks here."""
    if fcntl is None:
        return None
    for left in reversed(range(_TRIES if exclusive else 1)):  # looks are in an owner's way, and never in each other's
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if left:
                time.sleep(_PAUSE_S)
        except OSError:
            return None
    return False


def _same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _read(file: Path) -> Owner:
    try:
        noted = reading.read_json(file, RunError, "", limit=_LOCK_BYTES)
    except RunError:
        noted = {}
    host, pid = noted.get("host"), noted.get("pid")
    if isinstance(host, str) and isinstance(pid, int) and 0 < pid < 1 << 31:
        return Owner(host, pid)
    return Owner("", 0)  # just being written


def _lives(process: Owner) -> bool:
    if process.host != socket.gethostname():
        return bool(process.pid)
    try:
        os.kill(process.pid, 0)
    except PermissionError:  # somebody else's
        return True
    except OSError:
        return False
    return process.pid > 0
