"""The processes that train together, usually one a GPU: who they are, and what they sum and agree on; by Accelerate.

Launchers (torchrun, ours, mpirun, `accelerate launch`) say in environment variables who takes part. What they say is
honoured, or refused by its name.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from finetune.errors import PeerLost, RunError

_Item = TypeVar("_Item")
_FALSE = ("", "0", "false", "no", "off")

WAIT = timedelta(hours=12)
"""of a rank for another, which may encode a dataset or write a large file meanwhile; torch waits 10 or 30 minutes"""

_MPI = {
    "OMPI_COMM_WORLD_": ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
    "MV2_COMM_WORLD_": ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
    "MPI_": ("RANKID", "NRANKS", "LOCALRANKID", "LOCALNRANKS"),
}
"""what Open MPI, MVAPICH and Intel MPI call rank and size, in all and on this machine"""
_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SIZES = {
    "WORLD_SIZE": "torchrun", "OMPI_COMM_WORLD_SIZE": "mpirun", "MV2_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun", "MPI_NRANKS": "mpirun", "SLURM_STEP_NUM_TASKS": "srun",
}  # fmt: skip
"""variable with the number of processes -> who sets it; the first that is set counts: torchrun may run inside srun"""
_UNREAD = {
    "ACCELERATE_USE_FSDP": "leave FSDP out of `accelerate config`: train.shard in the recipe spreads weights",
    "ACCELERATE_USE_DEEPSPEED": "leave DeepSpeed out of `accelerate config`",
    "ACCELERATE_USE_MEGATRON_LM": "leave Megatron-LM out of `accelerate config`",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "leave the parallelism config out of `accelerate config`",
    "ACCELERATE_DYNAMO_BACKEND": "set train.compile = true in the recipe instead",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "set train.accumulate in the recipe instead",
}
"""settings of `accelerate launch` and `accelerate config` that no run here reads -> what to do instead"""


@dataclass(frozen=True)
class Ranks:
    """Who else trains; alone, summing is the identity."""

    rank: int = 0
    world_size: int = 1

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """This rank's part of what all do together."""
        return list(items[self.rank :: self.world_size])

    def rotated(self, items: Sequence[_Item]) -> list[_Item]:
        """From another place on for each rank: each makes its own share first, then finds the others' made."""
        start = len(items) * self.rank // self.world_size
        return [*items[start:], *items[:start]]

    def sum(self, tensor: Tensor) -> None:
        """Sum it over the ranks, in place.

        Raises:
            PeerLost: another process has ended.
        """
        if self.world_size > 1:
            with self.answered():
                torch.distributed.all_reduce(tensor)

    def gathered(self, value: _Item) -> list[_Item]:
        """Each rank's value, by rank, on all of them.

        Raises:
            PeerLost: another process has ended.
        """
        if self.world_size == 1:
            return [value]
        found: list[_Item] = [value] * self.world_size
        with self.answered():
            torch.distributed.all_gather_object(found, value)
        return found

    @contextmanager
    def answered(self) -> Generator[None, None, None]:
        """Raises PeerLost: another process has ended while this one waited for it in the block."""
        try:
            yield
        except RuntimeError as e:  # gloo's has no class of its own
            if not (isinstance(e, torch.distributed.DistError) or "gloo" in str(e)):
                raise
            said = str(e).strip().partition("\n")[0].rpartition(".cc:")[2].partition(". ")[0].lstrip("0123456789] ")
            lost = f"another of the {self.world_size} processes of this run has ended: {said}"
            raise PeerLost(lost, "resume the run") from e


ALONE = Ranks()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over the ranks (FSDP2); all of them must ask, in the same order."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def as_spread(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, where the other one is spread; all ranks have the same whole one."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # every rank has it: nothing is sent
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def open_ranks(cpu: bool) -> Ranks:
    """Meet the processes that a launcher started beside this one; alone without a launcher.

    Raises:
        RunError: a setting of the launcher that would be dropped, or processes that do not find each other.
    """
    _refuse_unread(os.environ, cpu)
    os.environ.update(_of_mpi(os.environ))
    name, expected = _expected(os.environ)
    if expected == 1 and "LOCAL_RANK" not in os.environ:
        return ALONE
    from accelerate import PartialState

    try:
        state = PartialState(cpu=cpu, timeout=WAIT)
    except (ValueError, RuntimeError) as e:
        PartialState._reset_state()
        said = str(e).strip().partition("\n")[0]
        raise RunError(f"the processes of this run do not find each other: {said}", LAUNCHERS) from e
    size = state.num_processes
    if expected not in (1, size):
        said = f"{_SIZES[name]} started {expected} processes ({name}), and {size} of them found each other"
        raise RunError(said, LAUNCHERS)
    return Ranks(state.process_index, size)


LAUNCHERS = "`gpus` starts them on one machine, and torchrun on several (docs/gpu.md)"


def refuse_precision(precision: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises RunError where the launcher was told another precision than the recipe's."""
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("", "no", precision):
        raise RunError(
            f"`accelerate launch` says mixed precision {asked} (ACCELERATE_MIXED_PRECISION), the recipe {precision}",
            f"set train.precision = {asked} in the recipe, or leave the launcher's out",
        )


def _refuse_unread(environment: Mapping[str, str], cpu: bool) -> None:
    for name, instead in _UNREAD.items():
        value = environment.get(name, "").lower()
        if value not in (*_FALSE, "1" if name.endswith("STEPS") else ""):
            raise RunError(f"{name}={environment[name]} is a setting of Accelerate's that no run reads", instead)
    if environment.get("ACCELERATE_USE_CPU", "").lower() not in _FALSE and not cpu:
        raise RunError("ACCELERATE_USE_CPU says to use no GPU, and there is one", "CUDA_VISIBLE_DEVICES= hides it")
    launched = "ACCELERATE_MIXED_PRECISION" in environment and bool(environment.get("MASTER_PORT"))
    if launched and _expected(environment)[1] == 1 and "LOCAL_RANK" not in environment:
        raise RunError("`accelerate launch` was asked for several processes, and starts one on a CPU", LAUNCHERS)


def _expected(environment: Mapping[str, str]) -> tuple[str, int]:
    """How many processes a launcher says it started, and the variable that says so."""
    said = [(name, int(environment[name])) for name in _SIZES if environment.get(name, "").isdecimal()]
    return said[0] if said else ("", 1)


def _of_mpi(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch calls the variables of mpirun; on one machine also where the ranks meet."""
    for prefix, names in _MPI.items():
        said = [environment.get(prefix + name, "") for name in names]
        if all(said) and "RANK" not in environment:
            here = {"MASTER_ADDR": "127.0.0.1"} if said[1] == said[3] and "MASTER_ADDR" not in environment else {}
            port = {} if "MASTER_PORT" in environment else {"MASTER_PORT": "29500"}
            return {**dict(zip(_TORCH, said, strict=True)), **here, **port}
    return {}
