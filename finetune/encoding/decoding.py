"""Work that threads do ahead of whoever asks for it: pictures are decoded while others are encoded.

Pillow lets go of Python's lock while it decodes and resizes.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
THREADS = 8


def decoded(batches: Iterable[list[T]], decode: Callable[[T], R]) -> Generator[list[tuple[T, "Future[R]"]], None, None]:
    """Each batch when it is asked for, and the next ones meanwhile: one, and two pictures a thread. What cannot be
    decoded is an error of its future. Closed, it waits for what the threads are at."""
    threads = min(THREADS, usable_cores())
    pool, waiting = ThreadPoolExecutor(threads), deque[list[tuple[T, Future[R]]]]()
    try:
        for batch in batches:
            waiting.append([(one, pool.submit(decode, one)) for one in batch])
            while len(waiting) > 1 and sum(map(len, waiting)) - len(waiting[0]) >= 2 * threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """That this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
