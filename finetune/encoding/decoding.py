"""Work that threads do ahead of whoever asks for it: pictures are decoded while others are encoded.

Pillow lets go of Python's lock while it decodes and resizes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from finetune.data.images.workers import worker_count

_T = TypeVar("_T")
_R = TypeVar("_R")
THREADS = 8


def decoded_ahead(
    batches: Iterable[list[_T]], decode: Callable[[_T], _R]
) -> Generator[list[tuple[_T, "Future[_R]"]], None, None]:
    """Each batch when it is asked for, and the next ones meanwhile: one, and two pictures a thread. What cannot be
    decoded is an error of its future. Closed, it waits for what the threads are at."""
    threads = min(THREADS, worker_count())
    pool, waiting = ThreadPoolExecutor(threads), deque[list[tuple[_T, Future[_R]]]]()
    try:
        for batch in batches:
            waiting.append([(one, pool.submit(decode, one)) for one in batch])
            while len(waiting) > 1 and sum(map(len, waiting)) - len(waiting[0]) >= 2 * threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
