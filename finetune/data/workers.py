"""Pictures are decoded by several threads, as Pillow lets go of Python's lock meanwhile; their order is kept.

A small picture is looked at by who asks for it: handing it over would take longer.
"""

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

from finetune.data import costs, decode
from finetune.data.diagnose import Unusable
from finetune.data.folder import Rejected, Rules
from finetune.data.record import Seen, stamped_bytes

SMALL_BYTES = 16 << 10
"""a picture of up to so many is not handed over"""
MOST_WORKERS, WAITING = 16, 4
"""threads; and for each of them the pictures that wait to be decoded, or to be asked for"""


class Room:
    """What all threads may hold of something together: as much as one picture may take of it by itself."""

    def __init__(self, most: float) -> None:
        self._most = self._free = most
        self._freed = Condition()

    @contextmanager
    def taken(self, amount: float) -> Iterator[None]:
        """Waits until there is so much."""
        amount = min(amount, self._most)
        with self._freed:
            self._freed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._freed:
                self._free += amount
                self._freed.notify_all()


class Bounds:
    """Bytes of files, and shares of the largest picture, that are held at once."""

    def __init__(self) -> None:
        self.files, self.pictures = Room(costs.MAX_FILE_BYTES), Room(1.0)


def worker_count() -> int:
    """The cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


def looked_at(
    root: Path, names: Sequence[str], stamps: Mapping[str, str], rules: Rules, workers: int
) -> Generator[Seen | Rejected, None, None]:
    """What each file is, in order. When this is left, what is being decoded is waited for, and no more begun."""
    sizes = {name: stamped_bytes(stamps.get(name, "")) for name in names} if workers > 1 else {}
    large = [name for name in names if sizes.get(name, 0) > SMALL_BYTES]
    with decode.SILENCE:
        if len(large) < 2:
            yield from (look_at(root, name, rules, None) for name in names)
            return
        yield from _threaded(root, names, sizes, rules, workers)


def _threaded(
    root: Path, names: Sequence[str], sizes: Mapping[str, int], rules: Rules, workers: int
) -> Generator[Seen | Rejected, None, None]:
    bounds, pool = Bounds(), ThreadPoolExecutor(workers, "decode")
    begun: deque[Future[Seen | Rejected] | str] = deque()

    def finished(one: Future[Seen | Rejected] | str) -> Seen | Rejected:
        return look_at(root, one, rules, bounds) if isinstance(one, str) else one.result()

    try:
        for name in names:
            large = sizes[name] > SMALL_BYTES
            begun.append(pool.submit(look_at, root, name, rules, bounds, sizes[name]) if large else name)
            if len(begun) > WAITING * workers:
                yield finished(begun.popleft())
        while begun:
            yield finished(begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(root: Path, name: str, rules: Rules, bounds: Bounds | None, size: int = 0) -> Seen | Rejected:
    """What one file is; bounds: where several are looked at. size: of the file in bytes, as it was before."""
    path = root / name
    try:
        if bounds is None:
            return _seen(path, decode.contents(path), rules, None)
        with bounds.files.taken(size):
            return _seen(path, decode.contents(path), rules, bounds)
    except Unusable as e:
        return Rejected(name, e.reason, e.detail)


def _seen(path: Path, data: bytes, rules: Rules, bounds: Bounds | None) -> Seen:
    if rules.decode:
        room = bounds.pictures.taken if bounds else None
        info, pixels = decode.inspect_pixels(path, data, rules.background, room)
    else:
        info, pixels = decode.inspect_bytes(path, data, decode=False), ""
    return Seen(hashlib.sha256(data).hexdigest(), info, pixels, rules.decode)
