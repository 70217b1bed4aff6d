"""Ranks of one run as forked children on this machine, which meet by gloo: what each of them ended with."""

import faulthandler
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.state import AcceleratorState

from finetune.errors import FinetuneError, SaidByAnother
from finetune.training.batches import Batches, StepBatches

HANGS_S = 120
"""after which a child is taken to hang"""


class Rank(NamedTuple):
    """How one ended."""

    code: int
    """exit code of the error, 0 without one; the negative signal that ended it"""
    said: str
    """the error's sentence and advice, or the traceback of a fault that is none of ours"""
    value: object


def in_ranks(
    world: int, act: Callable[[int], object], folder: Path, environment: Mapping[str, str] | None = None
) -> list[Rank]:
    """`act(rank)` in as many children at once. environment: beside what torchrun says, or instead of it where it is
    given with {rank}."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    launched = {
        "RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    children = []
    for rank in range(world):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            said = {**(launched if environment is None else {"MASTER_PORT": str(port), **environment})}
            os.environ.update({name: value.format(rank=rank) for name, value in said.items()})
            _run(act, rank, folder / f"rank{rank}.pickle")
        children.append(child)
    ended = []
    for rank, child in enumerate(children):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file = folder / f"rank{rank}.pickle"
        said, value = pickle.loads(file.read_bytes()) if file.exists() else ("", None)
        ended.append(Rank(code, said, value))
    return ended


def hit(rank: int, step: int, *numbers: int) -> Callable[[int], None]:
    """In this rank, signals while it puts a step (from 0) together."""

    def armed(own: int) -> None:
        made = Batches.step

        def interrupted(batches: Batches, k: int, *rest: object) -> StepBatches:
            if k == step and rank in (own, -1):
                for number in numbers:
                    os.kill(os.getpid(), number)
            return made(batches, k, *rest)  # type: ignore[arg-type]

        Batches.step = interrupted  # type: ignore[method-assign,assignment]

    return armed


def _run(act: Callable[[int], object], rank: int, file: Path) -> None:
    """Never returns."""
    code, said, value = 1, "", None
    signal.alarm(HANGS_S)
    faulthandler.dump_traceback_later(HANGS_S - 5, file=sys.__stderr__)
    try:
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of the parent was alone
        value = act(rank)
        code = 0
    except SaidByAnother as e:
        code = e.exit_code
    except FinetuneError as e:
        code, said = e.exit_code, f"{e.problem} | {e.advice}"
    except BaseException:  # noqa: BLE001  (a child tells its parent, whatever it is)
        said = traceback.format_exc()
    finally:
        file.write_bytes(pickle.dumps((said, value)))
        os._exit(code)
