"""Want of memory, wherever it shows: what devices and allocators say of it, and what to turn, in the order of what
helps. Nothing else in the package looks for it; what a recipe can turn is in `training/levers.py`.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune.errors import BaseError, MemoryShortage

_SAYS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "unable to allocate",
    "cublas_status_alloc_failed", "cudnn_status_alloc_failed",
)  # fmt: skip
"""of a RuntimeError, in lower case: torch's CPU allocator and CUDA's libraries have no error class of their own"""
ANYWHERE = "in this order: close what else takes memory on this device; the base in 4 bits; smaller pictures"
GENERATING = "in this order: `base_bits` 4; `text_encoder_bits` 8 or 4; a smaller `size`; `precision` bf16"
CHECKING = "in this order: `base_bits` 4; on a GPU that others use, wait until it is free"
MERGING = "merging takes the whole base in float32: use a machine with more memory, or export another `layout`"


def is_shortage(error: BaseException | None) -> bool:
    """Whether it says that memory has ended, or that a base cannot be loaded because it has."""
    if isinstance(error, BaseError):
        return is_shortage(error.__cause__)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in said for words in _SAYS))


@contextmanager
def out_of_memory(where: Callable[[], str] | str = "", lever: Callable[[], str] | str = ANYWHERE) -> Iterator[None]:
    """Inside, want of memory is an error of ours; an inner block knows better than one around it.

    Raises:
        MemoryShortage: where it was, and what to turn.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, BaseError) as e:
        if not is_shortage(e):
            raise
        place, hint = (text if isinstance(text, str) else text() for text in (where, lever))
        source = e.__cause__ if isinstance(e, BaseError) and e.__cause__ else e
        said = str(source).partition("\n")[0][:300]
        problem = " ".join(filter(None, ("out of memory", place)))
        raise MemoryShortage(": ".join(filter(None, (problem, said))), hint) from e
