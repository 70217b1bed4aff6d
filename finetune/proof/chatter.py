"""Other libraries' log lines and warnings while an adapter is loaded: not shown, and collected."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Inside, the libraries' log lines are not shown, and their warnings are collected."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    levels = [logger.level for logger in loggers]
    collected: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # what they refuse they log as an error, and raise
        try:
            yield collected
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            collected += [str(w.message).splitlines()[0][:200] for w in caught if w.category is UserWarning]
