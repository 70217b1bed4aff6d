"""Where the entries of many keys lie: compact, as there may be a million of them, and found without reading them."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from finetune import tensors as weights
from finetune.encoding.shards import KEY_LENGTH, Part, Rows, Shards, rows_of
from finetune.encoding.single_files import SingleFiles
from finetune.errors import BaseError

PLACE = np.dtype([("key", "u1", KEY_LENGTH), ("shard", "<i4"), ("start", "<i8"), ("length", "<i8")])


class EntryIndex:
    """Entries by number; equal keys have one number. Which are there is known, and what they hold is read when asked
    for."""

    def __init__(self, shards: Shards, old: SingleFiles, keys: Sequence[bytes]) -> None:
        self.shards, self.old = shards, old
        whole = np.frombuffer(b"".join(keys), "u1").reshape(-1, KEY_LENGTH)
        self._order, first, numbers = np.unique(_order(whole), return_index=True, return_inverse=True)
        self.numbers: list[int] = numbers.reshape(-1).tolist()
        """of each key"""
        self._places = np.zeros(len(first), PLACE)
        self._places["key"], self._places["shard"] = whole[first], -1
        self._names: list[str] = []
        self._seen: dict[str, int] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def has(self, number: int) -> bool:
        return bool(self._places["shard"][number] >= 0)

    def missing(self) -> list[int]:
        found: list[int] = np.flatnonzero(self._places["shard"] < 0).tolist()
        return found

    def refresh(self) -> None:
        """Find what was put since, by other processes, too."""
        if not len(self):
            return
        for part in self.shards.scan(self._seen):
            at = np.searchsorted(self._order, _order(part.rows["key"])).clip(max=len(self) - 1)
            wanted = (self._places["key"][at] == part.rows["key"]).all(axis=1)
            self._place(part, at[wanted], part.rows[wanted])

    def _place(self, part: Part, numbers: npt.NDArray[np.int64], rows: Rows) -> None:
        if not part.sealed:
            sound = [self.shards.read(part.name, *row) is not None for row in rows_of(rows)]
            numbers, rows = numbers[sound], rows[sound]
        if len(numbers):
            self._places["shard"][numbers] = self._shard(part.name)
            for field in ("start", "length"):
                self._places[field][numbers] = rows[field]

    def _shard(self, name: str) -> int:
        if not self._names or self._names[-1] != name:
            self._names.append(name)
        return len(self._names) - 1

    def put(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Raises RunError: the cache cannot be written."""
        name, start, length = self.shards.append(self._key(number), weights.to_bytes(tensors))
        self._places[number] = (self._places["key"][number], self._shard(name), start, length)

    def read(self, number: int) -> dict[str, Tensor] | None:
        """None: it is not there, or damaged."""
        if not self.has(number):
            return None
        _, shard, start, length = self._places[number]
        content = self.shards.read(self._names[shard], self._key(number), int(start), int(length))
        try:
            return None if content is None else weights.from_bytes(content)
        except BaseError:
            return None

    def drop(self, number: int) -> None:
        """Of one that was found damaged: the next run encodes it again, and what else is damaged beside it.

        Raises:
            RunError: the cache cannot be written.
        """
        if self.has(number):
            self.shards.drop_damaged(self._names[self._places["shard"][number]])

    def take_over(self, number: int) -> bool:
        """Move it from the format before, where it is there. Raises RunError: the cache cannot be written."""
        old = self.old.read(self._key(number))
        if old is not None:
            self.put(number, old)
            self.old.remove(self._key(number))
        return old is not None

    def _key(self, number: int) -> bytes:
        return bytes(self._places["key"][number].tobytes())


def _order(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """What keys are sorted by, and told apart: the first 8 bytes of a hash."""
    return np.ascontiguousarray(keys[:, :8]).view("<u8").reshape(-1)
