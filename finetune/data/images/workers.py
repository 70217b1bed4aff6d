"""Pictures are decoded by several threads, as Pillow lets go of Python's lock meanwhile; their order is kept.

A small picture is worked on by who asks for it: handing it over would take longer.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import TypeVar

from finetune.data.images import decode

Item = TypeVar("Item")
Made = TypeVar("Made")
Begun = list[tuple[Item, Callable[[], Made]]]
"""items, with what gives their results"""
SMALL_BYTES = 16 << 10
"""a file of up to so many is not handed over"""
MOST_WORKERS, WAITING = 16, 4
"""threads; and for each of them the pictures that wait to be worked on, or to be asked for"""
MOST_BESIDE = 8
"""threads beside an encoder, which needs cores itself"""


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

    def large(item: Item) -> bool:
        return size(item) > SMALL_BYTES

    with decode.SILENCE:
        if workers < 2:
            yield from map(work, items)
            return
        waiting = iter(items)
        while some := list(islice(waiting, WAITING * workers)):
            if sum(map(large, some)) > 1:
                singles = ([item] for item in chain(some, waiting))
                with closing(_ahead(singles, work, workers, WAITING * workers, large)) as ahead:
                    for [(_, made)] in ahead:
                        yield made()
            else:
                yield from map(work, some)


def in_batches(batches: Iterable[list[Item]], work: Callable[[Item], Made]) -> Generator[Begun[Item, Made], None, None]:
    """Each batch when it is asked for, while the next ones are worked on: one, and two pictures a thread. What is made
    of an item comes when it is called for, or the error that it ended with."""
    workers = min(MOST_BESIDE, worker_count())
    return _ahead(batches, work, workers, 2 * workers, lambda _: True)


def _ahead(
    batches: Iterable[list[Item]], work: Callable[[Item], Made], workers: int, waiting: int,
    large: Callable[[Item], bool],
) -> Generator[Begun[Item, Made], None, None]:  # fmt: skip
    """Each batch, and meanwhile those behind it, until so many items are waiting. large: is handed over."""
    begun, pool = deque[Begun[Item, Made]](), ThreadPoolExecutor(workers, "decode")
    try:
        for batch in batches:
            begun.append([(item, _begun(pool, work, item, large(item))) for item in batch])
            while len(begun) > 1 and sum(map(len, begun)) - len(begun[0]) >= waiting:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _begun(pool: ThreadPoolExecutor, work: Callable[[Item], Made], item: Item, large: bool) -> Callable[[], Made]:
    if not large:
        return lambda: work(item)
    future: Future[Made] = pool.submit(work, item)
    return future.result
