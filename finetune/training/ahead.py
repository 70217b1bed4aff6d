"""What the next steps need, made in a thread while this one trains; on a GPU copied beside its computation.

A thread makes one step and ends: however a run ends, none is left behind. Nothing that it makes depends on when it is
made.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_R = TypeVar("_R")
STEPS_AHEAD = 2
BYTES_AHEAD = 256 * 2**20
"""of the next steps, together; larger ones are made when they are due"""


class Ahead(Generic[_R]):
    """What steps need, in any order; where they are asked for one after the other, the next ones are made ahead."""

    def __init__(self, make: Callable[[int], _R], size: Callable[[_R], int]) -> None:
        """size: bytes of what was made."""
        self.make, self.size = make, size
        self._begun: dict[int, Future[_R]] = {}
        self._last = -1

    def __call__(self, step: int, steps: int) -> _R:
        """steps: of the whole run, from 0. Raises whatever making it raised, be it in a thread."""
        begun = self._begun.pop(step, None)
        made = begun.result() if begun else self.make(step)
        in_a_row, self._last = step == self._last + 1, step
        ahead = min(STEPS_AHEAD, BYTES_AHEAD // max(1, self.size(made))) if in_a_row else 0
        following = range(step + 1, min(step + 1 + ahead, steps))
        self._begun = {k: self._begun.get(k) or _begun(partial(self.make, k)) for k in following}
        return made

    def close(self) -> None:
        """Wait for what threads are at; it is dropped, and so is what went wrong there."""
        wait(self._begun.values())
        self._begun = {}
        self._last = -1


def _begun(make: Callable[[], _R]) -> "Future[_R]":
    pool = ThreadPoolExecutor(1, "ahead")
    begun = pool.submit(make)
    pool.shutdown(wait=False)
    return begun


class Copies:
    """Copies of batches to the device: on a GPU from pinned memory, and on a stream of their own inside `aside`."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device, self.cuda = device, cuda
        self.stream = cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.stream is None:
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def aside(self) -> AbstractContextManager[object]:
        """Of the thread that is inside."""
        if self.stream is None:
            return nullcontext()
        beside: AbstractContextManager[object] = self.cuda.stream(self.stream)
        return beside

    def arrived(self, tensors: Iterable[Tensor]) -> None:
        """What this thread computes from here on waits for the copies, and keeps their memory."""
        if self.stream is not None:
            here = self.cuda.current_stream(self.device)
            here.wait_stream(self.stream)
            for tensor in tensors:
                tensor.record_stream(here)
