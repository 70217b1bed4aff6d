"""Pictures are decoded by several threads, as Pillow lets go of Python's lock meanwhile; their order is kept.

A small picture is worked on by who asks for it: handing it over would take longer.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

from finetune.data.images import decode

Item = TypeVar("Item")
Made = TypeVar("Made")
SMALL_BYTES = 16 << 10
"""a file of up to so many is not handed over"""
MOST_WORKERS, WAITING = 16, 4
"""threads; and for each of them the pictures that wait to be worked on, or to be asked for"""


def worker_count() -> int:
    """The cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


def in_order(
    work: Callable[[Item], Made], items: Iterable[Item], size: Callable[[Item], int], workers: int
) -> Generator[Made, None, None]:
    """What `work` makes of each, in order. size: bytes of its file.

    When this is left, what is being worked on is waited for, and no more is begun. Decoders' warnings are silenced.
    """
    with decode.SILENCE:
        if workers < 2:
            yield from map(work, items)
            return
        waiting = iter(items)
        while some := list(islice(waiting, WAITING * workers)):
            if sum(size(item) > SMALL_BYTES for item in some) > 1:
                yield from _threaded(work, chain(some, waiting), size, workers)
            else:
                yield from map(work, some)


def _threaded(
    work: Callable[[Item], Made], items: Iterable[Item], size: Callable[[Item], int], workers: int
) -> Generator[Made, None, None]:
    begun: deque[Callable[[], Made]] = deque()
    pool = ThreadPoolExecutor(workers, "decode")
    try:
        for item in items:
            begun.append(_begun(pool, work, item, size(item) > SMALL_BYTES))
            if len(begun) > WAITING * workers:
                yield begun.popleft()()
        while begun:
            yield begun.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)


def _begun(pool: ThreadPoolExecutor, work: Callable[[Item], Made], item: Item, large: bool) -> Callable[[], Made]:
    if not large:
        return lambda: work(item)
    future: Future[Made] = pool.submit(work, item)
    return future.result
