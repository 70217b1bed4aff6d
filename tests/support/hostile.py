"""A command tried on hostile input in a forked child: its exit code, its words, and the memory it took."""

import faulthandler
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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
    files = {name: folder.parent / f"{folder.name}.{name}" for name in ("stdin", "stdout", "stderr")}
    files["stdin"].write_bytes(stdin)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:
        _run(arguments, folder, files, out)
    _, status, usage = os.wait4(child, 0)
    told = {name: files[name].read_bytes().decode("utf-8", "replace") for name in ("stdout", "stderr")}
    grown = max(0, usage.ru_maxrss - before) * 1024
    return Attempt(os.waitstatus_to_exitcode(status), told["stdout"], told["stderr"], grown)


def _run(arguments: Sequence[str | Path], folder: Path, files: dict[str, Path], out: int | None) -> None:
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
        sys.argv = ["finetune", *map(str, arguments)]
        from finetune import cli

        cli.main()
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
