"""Do two cores look at pictures nearly twice as fast as one? Pictures a second of `check` and `prepare`.

    python benchmarks/decode.py [--px 1024] [--pictures 120] [--rounds 3]

Each round takes turns: the process may use one core, then two. `apart` is what the machine gives: two processes, each
with a core and half of the pictures. Needs an idle machine, as the clock counts. The exit code is 1 when the median
ratio of a command is below the bar.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from finetune.data.audit import audit
from finetune.data.images.colours import WHITE
from finetune.data.images.decode import inspect_pixels
from finetune.data.prepare import prepare

BAR = 1.7
WORDS = {"trigger": "sks", "class_word": "mug"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--px", type=int, default=1024)
    arguments.add_argument("--pictures", type=int, default=120)
    arguments.add_argument("--rounds", type=int, default=3)
    said = arguments.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("this machine has one core")
    with tempfile.TemporaryDirectory() as folder:
        photos = made(Path(folder) / "photos", said.pictures, said.px)
        commands: dict[str, Callable[[Path], object]] = {
            "check": lambda _: audit(photos, **WORDS), "prepare": lambda out: prepare(photos, out, **WORDS),
        }  # fmt: skip
        audit(photos, **WORDS)  # imports what it needs
        for _ in range(said.rounds):
            say(f"apart    {decoded_apart(photos, cores[:1]) / decoded_apart(photos, cores):.2f} times")
        medians = []
        for name, command in commands.items():
            ratios = []
            for turn in range(said.rounds):
                seconds = {}
                for number in (1, 2) if turn % 2 else (2, 1):
                    seconds[number] = timed(command, cores[:number], Path(folder) / f"{name}-{turn}-{number}")
                ratios.append(seconds[1] / seconds[2])
                speeds = (f"{said.pictures / seconds[n]:.1f} pictures/s on {n}" for n in (1, 2))
                say(f"{name:<8} {', '.join(speeds)}: {ratios[-1]:.2f} times")
            medians.append(statistics.median(ratios))
            say(f"{name:<8} median {medians[-1]:.2f}, bar {BAR}")
    raise SystemExit(1 if min(medians) < BAR else 0)


def timed(command: Callable[[Path], object], cores: list[int], place: Path) -> float:
    """Seconds of the clock, with nothing kept from earlier calls."""
    os.environ["FINETUNE_CACHE"] = str(place / "cache")
    os.sched_setaffinity(0, cores)
    begin = time.perf_counter()
    command(place / "out")
    return time.perf_counter() - begin


def decoded_apart(photos: Path, cores: list[int]) -> float:
    """Seconds of the clock of as many processes, which share the pictures."""
    files, children = sorted(photos.glob("*.jpg")), []
    begin = time.perf_counter()
    for place, core in enumerate(cores):
        children.append(os.fork())
        if not children[-1]:
            os.sched_setaffinity(0, {core})
            for file in files[place :: len(cores)]:
                inspect_pixels(file, file.read_bytes(), WHITE)
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return time.perf_counter() - begin


def made(folder: Path, number: int, px: int) -> Path:
    """JPEG photographs, as far as a decoder can tell: soft shapes with grain."""
    folder.mkdir()
    for n in range(number):
        chance = np.random.default_rng(n)
        soft = Image.fromarray(chance.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((px, px))
        grain = Image.fromarray(chance.integers(0, 256, (px, px, 3), dtype=np.uint8))
        Image.blend(soft, grain.filter(ImageFilter.GaussianBlur(1)), 0.15).save(folder / f"{n}.jpg", quality=90)
        (folder / f"{n}.txt").write_text(f"a sks mug, number {n}")
    return folder


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
