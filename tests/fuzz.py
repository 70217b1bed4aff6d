"""Readers on spoilt files for as long as you say: `make fuzz`, or python tests/fuzz.py --seconds 600 --only recipe

Each round of a reader has a seed of its own, which is printed where something was found: --seed repeats it.
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from support.fuzzing import fuzzed, new_place  # noqa: E402
from support.readers import READERS  # noqa: E402

ROUND = 200
"""examples of a reader, before the next one has its turn"""


def main() -> int:
    """1 where a reader let something through."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for all readers together")
    parser.add_argument("--only", default="", help="readers whose name has this in it")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; default: another one each time")
    asked = parser.parse_args()
    readers = [name for name in READERS if asked.only in name]
    first = int.from_bytes(os.urandom(4), "big") if asked.seed is None else asked.seed
    place, ends, tried, found = new_place(), time.monotonic() + asked.seconds, Counter[str](), dict[str, str]()
    try:
        for seed in count(first):
            for name in [name for name in readers if name not in found]:
                if time.monotonic() > ends:
                    return summary(readers, tried, found)
                result = fuzzed(name, place, ROUND, seed)
                tried[name] += result.examples
                if result.content is not None:
                    found[name] = f"--only '{name}' --seed {seed}\n  {result.content!r:.1000}\n{result.error}"
                    say(f"{name}: {found[name]}")
            if len(found) == len(readers):
                return summary(readers, tried, found)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def summary(readers: list[str], tried: Counter[str], found: dict[str, str]) -> int:
    for name in readers:
        ended = f"LET THROUGH: {found[name].splitlines()[0]}" if name in found else "ok"
        say(f"{name:30}{tried[name]:>8} files  {ended}")
    say(f"{sum(tried.values())} files, {len(found)} of {len(readers)} readers let something through")
    return int(bool(found))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
