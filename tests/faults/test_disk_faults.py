"""A full disk, a failing one, a kill and a power cut at every operation of every writer: nothing whole is lost, nothing
torn is read, and the same work done once more succeeds."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.fault_mutations import MUTATIONS
from support.fault_targets import TARGETS
from support.faults import FAULTS, Campaign

pytestmark = pytest.mark.whole
AT_LEAST = 300
"""points, over all targets"""


@pytest.mark.parametrize("target", TARGETS)
def test_no_fault_of_the_disk_loses_or_tears(target: str, campaign: Campaign) -> None:
    tried = [row for row in campaign.tried if row[0] == target]
    assert {fault for _, fault, _, _ in tried} == {fault.name for fault in FAULTS}
    assert not [(fault, operation, wrong) for _, fault, operation, wrong in tried if wrong]


def test_enough_points_are_tried(campaign: Campaign) -> None:
    assert len(campaign.tried) >= AT_LEAST
    kinds = Counter(operation.split()[1] for _, _, operation, _ in campaign.tried)
    assert {"create", "write", "fsync", "rename", "unlink", "mkdir", "sendfile"} <= set(kinds)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_worse_way_to_save_is_found(mutation: str, campaign: Campaign) -> None:
    assert campaign.mutations[mutation], f"{mutation}: nothing was lost at any point"


PROGRAM = """
import ctypes, os, sys
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
folder = sys.argv[1].encode()
library.faults_arm(folder, 2, int(sys.argv[2]), 28)
with open(sys.argv[1] + "/file", "wb", buffering=0) as file:
    file.write(b"a" * 100)
    print("written", flush=True)
    os.fsync(file.fileno())
    file.write(b"b" * 100)
"""


@pytest.mark.parametrize("strike, left", [(1, 0), (3, 0), (4, 50), (5, 0), (6, 0)])
def test_the_library_strikes_where_it_is_told_to(strike: int, left: int, shim: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), str(strike)]
    done = subprocess.run(program, env={"LD_PRELOAD": str(shim)}, capture_output=True, text=True, check=False)
    assert (tmp_path / "file").stat().st_size == left and not done.stdout
    assert ("No space left" in done.stderr, done.returncode) == ((True, 1) if strike == 1 else (False, -9))
