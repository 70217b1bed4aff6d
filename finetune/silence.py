"""Keeps other libraries' warnings and log lines off the screen while a call of ours runs; then all is as it was."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

LOGGERS = ("accelerate", "bitsandbytes", "diffusers", "matplotlib", "peft", "transformers")
VERBOSITY = {"diffusers": "DIFFUSERS_VERBOSITY", "transformers": "TRANSFORMERS_VERBOSITY"}
"""libraries that set the level of their own logger when they are imported -> the variable that names it"""


@contextmanager
def silence() -> Iterator[None]:
    """Errors of those libraries still come through."""
    with warnings.catch_warnings(), ExitStack() as muted:
        warnings.simplefilter("ignore")
        for name in LOGGERS:
            muted.enter_context(_imported_in_silence(name) if name in VERBOSITY else _muted(name))
        yield


@contextmanager
def _muted(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _imported_in_silence(name: str) -> Iterator[None]:
    """One that is imported meanwhile has afterwards the level that its import would have given it."""
    new, said = name not in sys.modules, os.environ.get(VERBOSITY[name])
    if new:
        os.environ[VERBOSITY[name]] = "error"
    try:
        with _muted(name):
            yield
    finally:
        if new:
            _restore(VERBOSITY[name], said)
        if new and name in sys.modules:
            level = logging.getLevelName((said or "warning").upper())
            logging.getLogger(name).setLevel(level if isinstance(level, int) else logging.WARNING)


def _restore(variable: str, said: str | None) -> None:
    if said is None:
        del os.environ[variable]
    else:
        os.environ[variable] = said
