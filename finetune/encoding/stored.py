"""Encoded images or captions as a mapping: keys are held, entries are read when they are asked for."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import TypeVar

from torch import Tensor

from finetune.encoding import sizes
from finetune.encoding.entries import EntryIndex
from finetune.errors import RunError

_K = TypeVar("_K")
_V = TypeVar("_V")
ENTRY_BYTES = 1500
"""in memory, of an entry that is held, beside its numbers"""


class EntryLost(RunError):
    """An entry that was in the store when the run began is no longer there, or damaged."""


class Stored(Mapping[_K, _V]):
    """Entries by what they were made of. The last ones are held; may be asked by several threads."""

    def __init__(self, entries: EntryIndex, numbers: Mapping[_K, int], made: Callable[[dict[str, Tensor]], _V]) -> None:
        self.entries, self.numbers, self.made = entries, numbers, made
        self.held: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self.bytes = 0
        self._lock = Lock()

    def __getitem__(self, name: _K) -> _V:
        """Raises EntryLost."""
        number = self.numbers[name]
        with self._lock:
            entry = self.held.get(number)
        if entry is None:
            entry = self.entries.read(number)
        if entry is None:
            raise self._gone(number)
        self.hold(number, entry)
        return self.made(entry)

    def _gone(self, number: int) -> EntryLost:
        """Not encoded here: the encoders have left the device, and elsewhere they would not give the same bits."""
        self.entries.drop(number)
        return EntryLost(
            f"an entry has gone from the cache {self.entries.shards.folder}, or is damaged",
            "resume the run: what is missing is encoded again",
        )

    def __iter__(self) -> Iterator[_K]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def hold(self, number: int, entry: dict[str, Tensor]) -> None:
        with self._lock:
            if number not in self.held:
                self.bytes += _bytes(entry)
            self.held[number] = entry
            self.held.move_to_end(number)
            while (self.bytes > sizes.HELD_BYTES or len(self.held) > sizes.HELD_ENTRIES) and len(self.held) > 1:
                self.bytes -= _bytes(self.held.popitem(last=False)[1])


def _bytes(entry: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in entry.values())
