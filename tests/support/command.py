"""The real command in a process of its own, and what an answer costs, counted and not timed."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from finetune import cli


def ran(*arguments: str | Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, or a script in its place."""
    program = ["-c", code] if code else ["-m", "finetune"]
    return subprocess.run([sys.executable, *program, *map(str, arguments)], capture_output=True, text=True, check=False)


class Answer(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str
    modules: frozenset[str]
    """every module that was imported, those that a bare interpreter imports excepted"""


def answered(*arguments: str | Path) -> Answer:
    """The command once more in a process of its own, with all that it imported."""
    bare, done = (_listed(*program) for program in (("-c", "pass"), ("-m", "finetune", *map(str, arguments))))
    modules, stderr = done[1]
    return Answer(done[0].returncode, done[0].stdout, stderr, modules - bare[1][0])


def _listed(*program: str) -> tuple[subprocess.CompletedProcess[str], tuple[frozenset[str], str]]:
    command = [sys.executable, "-X", "importtime", *program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines(keepends=True)
    told = [line for line in lines if line.startswith("import time:")]
    names = frozenset(re.split(r"\|\s*", line.strip())[-1] for line in told)
    return done, (names, "".join(line for line in lines if line not in told))


def said(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command in this process, through the same door."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        patch.setattr(cli, "hush", lambda: None)  # it would switch off this process's warnings
        cli.main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def calls(work: Callable[[], object]) -> int:
    """How many functions the work calls, Python's own included."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def sampled(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit code, all that was printed) of `finetune sample` in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["finetune", "sample", *map(str, arguments)])
        patch.setattr(cli, "hush", lambda: None)
        cli.main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out + captured.err
