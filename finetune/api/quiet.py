"""What every call does first."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune.shortage import out_of_memory
from finetune.silence import silence


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, other libraries are silent, and want of memory is a MemoryShortage."""
    with silence(), out_of_memory():
        yield
