"""`train --gpus N` and other launchers: each form trains as many ranks as it says, or is refused by name."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.ranks import in_ranks

from finetune import ranks
from finetune.cli import training as commands
from finetune.errors import RunError
from finetune.training import launch as launching
from finetune.training.launch import launch

LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no", "ACCELERATE_USE_CPU": "True"}
OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in
            (("RANK", "{rank}"), ("SIZE", "2"), ("LOCAL_RANK", "{rank}"), ("LOCAL_SIZE", "2"))}  # fmt: skip
INTEL_MPI = {"PMI_RANK": "{rank}", "PMI_SIZE": "2", "MPI_RANKID": "{rank}", "MPI_NRANKS": "2",
             "MPI_LOCALRANKID": "{rank}", "MPI_LOCALNRANKS": "2"}  # fmt: skip
TORCHRUN = {"RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1"}  # fmt: skip


def summed(rank: int) -> object:
    found = ranks.open_ranks(cpu=True)
    tensor = torch.tensor([1.0, float(found.rank)])
    found.sum(tensor)
    return found, tensor.tolist(), found.gathered(f"of {rank}")


@pytest.mark.parametrize(
    "environment", [TORCHRUN, TORCHRUN | ACCELERATE, OPEN_MPI, INTEL_MPI],
    ids=["torchrun", "accelerate on GPUs", "Open MPI", "Intel MPI"],
)  # fmt: skip
def test_processes_that_find_each_other_are_ranks(environment: Mapping[str, str], tmp_path: Path) -> None:
    for rank, one in enumerate(in_ranks(2, summed, tmp_path, environment)):
        assert one.code == 0, one.said
        assert one.value == (ranks.Ranks(rank, 2), [2.0, 1.0], ["of 0", "of 1"])


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "the processes of this run do not find each other: "),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 processes"),
        (ACCELERATE | {"MASTER_PORT": "29500"}, "was asked for several processes, and starts one on a CPU"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP=true is a setting of Accelerate's that no run reads"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "ACCELERATE_DYNAMO_BACKEND=INDUCTOR"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4"),
    ],
)
def test_what_a_launcher_says_and_no_run_does_is_refused(
    environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    (one,) = in_ranks(1, summed, tmp_path, {"MASTER_PORT": ""} | environment)
    assert one.code == RunError.exit_code and said in one.said and len(one.said.partition(" | ")[2]) > 20


@pytest.mark.parametrize(
    "environment",
    [
        ACCELERATE | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "WORLD_SIZE": "1"},
        TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"},
    ],
    ids=["what accelerate launch says always", "torchrun inside srun"],
)  # fmt: skip
def test_settings_that_change_nothing_are_no_fault(environment: dict[str, str], tmp_path: Path) -> None:
    (one,) = in_ranks(1, summed, tmp_path, {"MASTER_PORT": "" if "RANK" not in environment else "0"} | environment)
    assert one.code == 0, one.said
    assert one.value == (ranks.ALONE, [1.0, 0.0], ["of 0"])


def test_a_precision_that_the_launcher_says_is_the_recipes_or_refused() -> None:
    for fine in ({}, {"ACCELERATE_MIXED_PRECISION": "no"}, {"ACCELERATE_MIXED_PRECISION": "bf16"}):
        ranks.refuse_precision("bf16", fine)
    with pytest.raises(RunError, match=r"mixed precision fp16 .* the recipe bf16"):
        ranks.refuse_precision("bf16", {"ACCELERATE_MIXED_PRECISION": "fp16"})


# --- our own ---------------------------------------------------------------------------------------------------------


def launched(script: str, count: int, *arguments: object) -> tuple[int, list[str]]:
    said: list[str] = []
    return launch(count, [sys.executable, "-c", script, *map(str, arguments)], said.append), said[1:]


def test_each_rank_gets_the_command_and_its_place(tmp_path: Path) -> None:
    script = "import os, sys; open(f'{sys.argv[1]}/{os.environ[\"RANK\"]}', 'w').write(repr({k: os.environ.get(k) " \
             f"for k in {sorted(LAUNCHED)}}}))"  # fmt: skip
    assert launched(script, 3, tmp_path) == (0, [])
    told = [eval((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [one["RANK"] for one in told] == [one["LOCAL_RANK"] for one in told] == ["0", "1", "2"]
    assert {one["WORLD_SIZE"] for one in told} == {"3"} and len({one["MASTER_PORT"] for one in told}) == 1


def test_the_first_that_fails_gives_the_exit_code_and_the_sentence() -> None:
    script = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1': sys.stderr.write('error: no room\\n  try: another disk\\n'); sys.exit(3)\n"
        "time.sleep(1); sys.exit(130)"
    )
    assert launched(script, 2) == (3, ["rank 1: error: no room", "rank 1:   try: another disk"])


def test_a_rank_that_is_killed_is_named_and_the_others_are_asked_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "ALONE_SECONDS", 0.2)
    script = (
        "import os, signal, sys, time\n"
        "def save(*_): open(sys.argv[1], 'w').write('saved'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "if os.environ['RANK'] == '1': time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(100)"
    )
    code, said = launched(script, 2, tmp_path / "state")
    assert code == 128 + signal.SIGKILL and said == ["error: rank 1 was ended by SIGKILL"]
    assert (tmp_path / "state").read_text() == "saved"


LAUNCHER = """
import sys
from finetune.training.launch import launch
sys.exit(launch(2, [sys.executable, "-c", sys.argv[1], sys.argv[2]], print))
"""
WAITS = """
import os, signal, sys, time
pipe = os.open(sys.argv[1], os.O_WRONLY)
def stop(number, _): os.write(pipe, f"stopped by {number}\\n".encode()); os._exit(130)
for one in (signal.SIGTERM, signal.SIGHUP): signal.signal(one, stop)
signal.alarm(100)  # ends one that nobody stops
os.write(pipe, b"begun\\n")
while True: time.sleep(0.05)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_rank_outlives_its_launcher(tmp_path: Path, number: int) -> None:
    """A pipe that both ranks hold ends when both have."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    os.mkfifo(pipe := tmp_path / "pipe")
    command = [sys.executable, "-c", LAUNCHER, WAITS, str(pipe)]
    with subprocess.Popen(command, env=environment) as launcher, pipe.open() as told:
        assert [told.readline() for _ in range(2)] == ["begun\n"] * 2
        launcher.send_signal(number)
        ended = launcher.wait()
        sent = signal.SIGTERM if number == signal.SIGKILL else number
        assert told.read() == f"stopped by {int(sent)}\n" * 2
    assert ended == (-signal.SIGKILL if number == signal.SIGKILL else 130)


def test_a_rank_does_not_launch_again_and_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert commands._launched(2, []) is None
    with pytest.raises(RunError, match="`gpus` is 4, and a launcher has started 2 processes"):
        commands._launched(4, [])
