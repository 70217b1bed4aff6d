"""What the store lacks of what a run wants, encoded in batches; what is encoded is kept, however the run ends."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from finetune.encoding.store import Store
from finetune.encoding.stored import Stored
from finetune.shortage import is_shortage

_T = TypeVar("_T")
_R = TypeVar("_R")


class Missing(Generic[_T]):
    """By number, each once; another process may encode some of it meanwhile."""

    def __init__(self, store: Store, kind: str, found: Stored[Any, Any], wanted: Sequence[_T]) -> None:
        """found: the wanted ones, in their order."""
        self.store, self.kind, self.found, self.entries = store, kind, found, found.entries
        numbers = self.entries.numbers
        lacking = set(self.entries.missing())
        self.todo: dict[int, _T] = {
            number: one for number, one in zip(numbers, wanted, strict=True) if number in lacking
        }
        self.done = len(wanted) - sum(number in lacking for number in numbers)
        self._wanted, self._put = len(wanted), 0
        self._times = np.bincount(numbers, minlength=len(self.entries)) if numbers else np.zeros(0, int)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What was put inside is closed behind, and counted."""
        try:
            yield
        finally:
            self.store.seal(self.kind)
            self.store.misses += self._put
            self.store.hits += self.done - self._put

    def found_before(self) -> Iterator[int]:
        """How many are done, as those that are there in the format before are moved."""
        if self.done:
            yield self.done
        for number in [number for number in self.todo if self.entries.take_over(number)]:
            del self.todo[number]
            yield self.finished(number)

    def batches(self, batches: Iterable[list[tuple[int, _T]]]) -> Iterator[list[tuple[int, _T]]]:
        """Without what is there by now."""
        for batch in batches:
            self.entries.refresh()
            there = {number for number, _ in batch if self.entries.has(number)}
            for number in there:
                self.finished(number)
            if len(there) < len(batch):
                yield [pair for pair in batch if pair[0] not in there]

    def put(self, number: int, entry: dict[str, Tensor]) -> None:
        """Raises RunError: the cache cannot be written."""
        if not self.entries.has(number):
            self.entries.put(number, entry)
            self._put += 1
            self.found.hold(number, entry)
        self.finished(number)

    def finished(self, number: int) -> int:
        self.done += int(self._times[number])
        return self.done


class Fewer(Generic[_T, _R]):
    """Calls with as many at once as are given, and with fewer after memory did not suffice."""

    def __init__(self, call: Callable[[list[_T]], list[_R]]) -> None:
        self.call, self.most = call, 0

    def __call__(self, items: Sequence[_T]) -> Iterator[_R]:
        """Raises whatever the call does, and want of memory where one alone is too much."""
        left = list(items)
        while left:
            some = left[: self.most] if self.most else left
            try:
                made = self.call(some)
            except (RuntimeError, MemoryError) as e:
                if len(some) == 1 or not is_shortage(e):
                    raise
                self.most = len(some) // 2
            else:
                yield from made
                left = left[len(some) :]
