"""Faults of a disk, put into a process that was started with the library of tests/faults/shim.c."""

import ctypes
import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


class Strike(IntEnum):
    """As `enum fault` in shim.c."""

    NOTHING, FAIL_ONCE, FAIL_ON, KILL, KILL_HALFWAY, POWER_CUT, POWER_CUT_ZEROS = range(7)


class Fault(NamedTuple):
    name: str
    strike: Strike
    error: int = 0

    @property
    def kills(self) -> bool:
        return self.strike >= Strike.KILL


NONE = Fault("none", Strike.NOTHING)
POWER_CUTS = (
    Fault("the power is cut", Strike.POWER_CUT),
    Fault("the power is cut, and zeros are left", Strike.POWER_CUT_ZEROS),
)
FAULTS = (
    Fault("the disk is full from here on", Strike.FAIL_ON, errno.ENOSPC),
    Fault("it cannot be read or written, once", Strike.FAIL_ONCE, errno.EIO),
    Fault("killed", Strike.KILL),
    Fault("killed halfway through a write", Strike.KILL_HALFWAY),
    *POWER_CUTS,
)


class Point(NamedTuple):
    fault: Fault
    number: int
    """of the operation that is struck, from 1"""


class Campaign(NamedTuple):
    tried: list[tuple[str, str, str, str]]
    """target, fault, operation, and what is wrong; empty: nothing"""
    mutations: dict[str, list[str] | None]
    """what was put in the place of our code -> the first point at which something was lost"""


class Shim:
    """Operations below a folder are counted while it is armed."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.faults_trace.restype = ctypes.c_char_p

    @contextmanager
    def armed(self, folder: Path, point: Point) -> Iterator[None]:
        strike = ctypes.c_int(point.fault.strike)
        self._library.faults_arm(os.fsencode(folder), ctypes.c_long(point.number), strike, point.fault.error)
        try:
            yield
        finally:
            self._library.faults_end()

    @property
    def operations(self) -> list[str]:
        """What was done since it was armed: "write PATH"."""
        return [os.fsdecode(line) for line in self._library.faults_trace().splitlines()]


def points(operations: int, most: int, seed: int) -> list[Point]:
    """Every fault at every operation; where that is more than `most`, an even sample of it. At last the power
    cuts when all is done."""
    every = [Point(fault, n) for n in range(1, operations + 1) for fault in FAULTS]
    step = max(1.0, len(every) / (most - 1))
    start = random.Random(seed).random() * step
    chosen = [every[int(start + n * step)] for n in range(most) if start + n * step < len(every)]
    return [*chosen, *(Point(fault, operations + 1) for fault in POWER_CUTS)]
