"""Does everything that is done with a dataset grow no faster than the dataset? CPU seconds and peak memory by size.

    python benchmarks/data.py --folder WORK [--largest 100000] [--steps 60]

Makes 1,000, 10,000 and 100,000 pictures of 48 to 64 px with captions beside them, and carries out `prepare`, `check`,
`plan` and the start of `train` on the pocket base, each in a process of its own: with nothing kept, and again. Prints a
table, and exits 1 where a bar is missed. What was measured is kept in WORK/results.json; a call goes on from there.

CPU seconds are of the whole process with its threads, which other programs disturb less than the clock. Growth is what
more pictures cost: (t(n) - t(1,000)) by picture, at the largest size against the one before.
"""

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

HERE = Path(__file__).parent.parent
SIZES = (1_000, 10_000, 100_000)
SHAPES = ((48, 48), (64, 48), (48, 64))
GROWTH, MEMORY_MB, STEP = 1.15, 200, 1.02
FIXED_S, EACH_US = 10, 30
"""until the first step of a run that begins again: at most, and for each picture"""
COMMANDS = {
    "prepare": ("prepare", "RAW", "--out", "DATA", "--trigger", "sks", "--class-word", "mug"),
    "check, photos": ("check", "RAW", "--trigger", "sks", "--class-word", "mug"),
    "check, photos, again": ("check", "RAW", "--trigger", "sks", "--class-word", "mug"),
    "check, dataset": ("check", "DATA"),
    "check, dataset, again": ("check", "DATA"),
    "plan": ("plan", "pocket-product", "--set=data.path=DATA", "--set=prior.mode=off"),
}
TRAINED = ("train, first time", "train, again")
"""to the first step"""
TRAIN = """
import json, sys, time
from finetune import recipe
from finetune.events import Stepped
from finetune.training.run import run
from pathlib import Path
data, out, steps = sys.argv[1:]
sets = [f"data.path={data}", "prior.mode=off", f"train.steps={steps}", "sample.every=0", "evaluate.every=0",
        "train.checkpoint_every=100000"]
first, took = None, []
for event in run(recipe.load(Path("pocket-product"), sets), Path(out)):
    if isinstance(event, Stepped):
        now = time.process_time()
        first, took = first or now, [*took, now]
        if event.step == int(steps) - 1:
            break
each = sorted(b - a for a, b in zip(took, took[1:]))
print(json.dumps({"first": first, "step": each[len(each) // 2] if each else None}))
"""


class Measured(NamedTuple):
    cpu: float
    """seconds; of training until the first step"""
    peak_mb: float
    step: float | None = None
    """CPU seconds of the median step"""


Found = dict[int, dict[str, Measured]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, required=True, help="for pictures, datasets and results")
    arguments.add_argument("--largest", type=int, default=SIZES[-1])
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--no-train", action="store_true", help="without training, which encodes each picture")
    said = arguments.parse_args()
    sizes = sorted({*(n for n in SIZES if n < said.largest), said.largest})
    wanted = tuple(COMMANDS) if said.no_train else (*COMMANDS, *TRAINED)
    found: Found = {n: measured(n, wanted, said.folder.resolve(), said.steps) for n in sizes}
    say(table(found))
    missed = [sentence for sentence, held in bars(found) if not held]
    say("".join(f"\nmissed: {sentence}" for sentence in missed) or "\nevery bar is held")
    raise SystemExit(1 if missed else 0)


def measured(n: int, wanted: Sequence[str], folder: Path, steps: int) -> dict[str, Measured]:
    """Of one size: what was measured before stays."""
    kept, raw, data, cache = (
        folder / "results.json",
        folder / f"photos-{n}",
        folder / f"data-{n}",
        folder / f"cache-{n}",
    )
    everything = json.loads(kept.read_text()) if kept.exists() else {}
    found: dict[str, list[float | None]] = everything.setdefault(str(n), {})
    if not set(wanted) <= set(found):
        make(raw, n)
    for what in wanted:
        if what in found:
            continue
        if what == "prepare":
            shutil.rmtree(data, ignore_errors=True)
        command = [sys.executable, "-m", "finetune", *(_placed(word, raw, data) for word in COMMANDS.get(what, ()))]
        if what in TRAINED:
            shutil.rmtree(folder / "run", ignore_errors=True)
            command = [sys.executable, "-c", TRAIN, str(data), str(folder / "run"), str(steps)]
        own = cache.with_name(f"{cache.name}-photos") if "photos" in what else cache  # `prepare` has seen them
        found[what] = list(carried_out(command, own))
        kept.write_text(json.dumps(everything, indent=1))
        say(f"{n:>7,} {what:<24} {found[what][0]:8.2f} s {found[what][1]:6.0f} MB")
    return {what: Measured(*found[what]) for what in wanted}  # type: ignore[arg-type]


def _placed(word: str, raw: Path, data: Path) -> str:
    return word.replace("RAW", str(raw)).replace("DATA", str(data))


def carried_out(command: list[str], cache: Path) -> Measured:
    """Raises SystemExit: it failed."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "FINETUNE_CACHE": str(cache)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=error)
        _, status, usage = os.wait4(child.pid, 0)
        for stream in (out, error):
            stream.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command[:6])} ended with status {status}: {error.read()[-1000:]}")
        last = out.read().strip().rpartition("\n")[2]
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    if last.startswith('{"first"'):
        told = json.loads(last)
        return Measured(told["first"], peak, told["step"])
    return Measured(cpu, peak)


def make(folder: Path, n: int) -> None:
    """Pictures of smooth colours in three shapes, as JPEG, each with a caption of its own beside it."""
    done = folder.with_suffix(".made")
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for i in range(n):
        content = io.BytesIO()
        coarse = Image.frombytes("RGB", (8, 8), chance.randbytes(192))
        coarse.resize(chance.choice(SHAPES)).save(content, "JPEG", quality=90)
        (folder / f"{i}.jpg").write_bytes(content.getvalue())
        (folder / f"{i}.txt").write_text(f"a mug number {i} on a {chance.choice(('red', 'blue', 'green'))} table")
    done.touch()


def bars(found: Found) -> Iterator[tuple[str, bool]]:
    """(what was found and what is asked for, is it held)."""
    least, largest = min(found), max(found)
    for what in found[least]:
        if (grown := growth(found, what)) is not None:
            yield (
                f"{what}: a picture costs {grown:.2f} times what it costs among fewer; at most {GROWTH}",
                grown <= GROWTH,
            )
        more = found[largest][what].peak_mb - found[least][what].peak_mb
        yield f"{what}: {more:.0f} MB more at {largest:,} than at {least:,}; at most {MEMORY_MB}", more <= MEMORY_MB
    if TRAINED[1] not in found[least]:
        return
    again, allowed = found[largest][TRAINED[1]], FIXED_S + EACH_US * largest / 1e6
    yield f"first step after {again.cpu:.1f} s, at most {allowed:.1f}", again.cpu <= allowed
    steps = [found[n][TRAINED[1]].step or 0.0 for n in (least, largest)]
    yield f"a step takes {steps[1] / steps[0]:.3f} of what it takes among {least:,}", steps[1] <= STEP * steps[0]


def growth(found: Found, what: str) -> float | None:
    """What a picture costs at the largest size, of what it costs at the one before; None: there are not three sizes."""
    if len(found) < 3:
        return None
    least, *_, before, largest = sorted(found)
    each = [(found[n][what].cpu - found[least][what].cpu) / (n - least) for n in (before, largest)]
    return each[1] / each[0]


def table(found: Found) -> str:
    """In Markdown: a row for each command."""
    sizes = sorted(found)
    head = [f"{n:,}" for n in sizes]
    lines = [
        "| | " + " | ".join(f"{one} pictures" for one in head) + " | us for each more | growth | MB more |",
        "|---|" + "---|" * (len(sizes) + 3),
    ]
    least, largest = sizes[0], sizes[-1]
    for what in found[least]:
        rows = [found[n][what] for n in sizes]
        each = (rows[-1].cpu - rows[0].cpu) / (largest - least) * 1e6 if largest > least else 0.0
        grown = growth(found, what)
        cells = [f"{one.cpu:.1f} s, {one.peak_mb:.0f} MB" for one in rows]
        more = f"{rows[-1].peak_mb - rows[0].peak_mb:.0f}"
        lines.append(
            f"| {what} | " + " | ".join([*cells, f"{each:.0f}", f"{grown:.2f}" if grown else "-", more]) + " |"
        )
    if TRAINED[1] not in found[least]:
        return "\n".join(lines)
    steps = [found[n][TRAINED[1]].step or 0.0 for n in sizes]
    lines.append(
        "| a step | " + " | ".join(f"{1000 * one:.1f} ms" for one in steps) + f" | | {steps[-1] / steps[0]:.3f} | |"
    )
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
