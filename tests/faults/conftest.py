"""A disk that fails where it is told to: the library is built once, and every target is struck in one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.faults import Campaign

SOURCE = Path(__file__).with_name("shim.c")
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    built = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", built, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return built


@pytest.fixture(scope="session")
def campaign(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    place = tmp_path_factory.mktemp("campaign")
    code = f"from support import fault_campaign; fault_campaign.main({str(place)!r})"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": paths, "FINETUNE_CACHE": str(place / "cache"),
                   "TMPDIR": str(place)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=place
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return Campaign([tuple(row) for name, row in rows if not name], {name: row for name, row in rows if name})
