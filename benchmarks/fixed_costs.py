"""Where the time of a short run on the pocket base goes, and how that compares with another checkout.

    python benchmarks/fixed_costs.py [--recipe pocket-product] [--steps 100] [--rounds 1] [--against CHECKOUT]

Each run is the command `finetune train` with an empty cache, in a process of its own; the checkouts take turns. A stage
ends with its event. Seconds are of the processor (all threads together), which other programs disturb less, and of the
clock; the shares are what one run tells, and the ratios what two told side by side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil

HERE = Path(__file__).parent.parent
STAGES = ("start", "encoding and pre-flight", "pictures on the way", "steps", "checkpoints", "judgement by loss",
          "export and proof", "verdict", "sheet", "end")  # fmt: skip


class Cost(NamedTuple):
    """Seconds of the processor and of the clock."""

    cpu: float
    wall: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--recipe", default="pocket-product")
    arguments.add_argument("--steps", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--against", type=Path, help="the root of another checkout, such as a git worktree")
    said = arguments.parse_args()
    checkouts = {"this": HERE} | ({"other": said.against.resolve()} if said.against else {})
    found: dict[str, list[dict[str, Cost]]] = {name: [] for name in checkouts}
    for turn in range(said.rounds):
        for name in list(checkouts)[:: 1 if turn % 2 else -1]:
            found[name].append(run(checkouts[name], said.recipe, said.steps))
    report(found)


def run(checkout: Path, recipe: str, steps: int) -> dict[str, Cost]:
    """What each stage of one run costs.

    Raises:
        SystemExit: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "FINETUNE_CACHE": f"{folder}/cache"}
        command = ["-m", "finetune", "train", recipe, "--out", f"{folder}/run", "--json", f"--set=train.steps={steps}"]
        with subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            watch = Watch(child.pid)
            for line in child.stdout:
                watch.heard(json.loads(line))
            watch.left()
        if child.returncode not in (0, 4):  # 4: so few steps need not teach it
            raise SystemExit(f"the run of {checkout} ended with {child.returncode}")
    return watch.costs()


class Watch:
    """Gives each stage what its process spent since the one before."""

    def __init__(self, pid: int) -> None:
        self.process, self.began = psutil.Process(pid), time.perf_counter()
        self.last, self.judged = Cost(0, 0), False
        self.cpu, self.wall = Counter[str](), Counter[str]()

    def heard(self, event: dict[str, object]) -> None:
        stage = self._stage(event)
        if stage:
            now = self._now()
            self.cpu[stage] += now.cpu - self.last.cpu
            self.wall[stage] += now.wall - self.last.wall
            self.last = now

    def left(self) -> None:
        self.wall["end"] += time.perf_counter() - self.began - self.last.wall

    def costs(self) -> dict[str, Cost]:
        return {stage: Cost(self.cpu[stage], self.wall[stage]) for stage in STAGES}

    def _now(self) -> Cost:
        times = self.process.cpu_times()
        return Cost(times.user + times.system, time.perf_counter() - self.began)

    def _stage(self, event: dict[str, object]) -> str | None:
        """That this event ends; None: it goes on."""
        kind = str(event["event"])
        self.judged = self.judged or kind == "training_effect"
        if kind == "note":
            return (
                "encoding and pre-flight" if "pre-flight" in str(event["text"]) else "start" if not self.wall else None
            )
        if kind == "sampled":
            return "sheet" if self.judged else "pictures on the way"
        ends = {"stepped": "steps", "saved": "checkpoints", "training_effect": "judgement by loss"}
        return {**ends, "verified": "export and proof", "evaluated": "verdict", "finished": "end"}.get(kind)


def report(found: dict[str, list[dict[str, Cost]]]) -> None:
    """A row a stage: its share of each checkout's processor time, and how many times the other's it takes."""
    means = {name: _means(rounds) for name, rounds in found.items()}
    wholes = {name: _sum(costs) for name, costs in means.items()}
    say(
        f"{'':<26}"
        + "".join(f"{name:>16}" for name in means)
        + ("      cpu ratio  clock ratio" if len(means) > 1 else "")
    )
    for stage in (*STAGES, "but the steps", "all"):
        row = {name: _of(costs, stage) for name, costs in means.items()}
        text = f"{stage:<26}" + "".join(f"{c.cpu:>8.1f} s {c.cpu / wholes[n].cpu:>4.0%} " for n, c in row.items())
        if len(row) > 1 and row["other"].cpu:
            text += f"{row['this'].cpu / row['other'].cpu:>13.2f} {row['this'].wall / row['other'].wall:>12.2f}"
        say(text)


def _of(costs: dict[str, Cost], stage: str) -> Cost:
    if stage in costs:
        return costs[stage]
    return _sum({name: cost for name, cost in costs.items() if stage == "all" or name != "steps"})


def _sum(costs: dict[str, Cost]) -> Cost:
    return Cost(*map(sum, zip(*costs.values(), strict=True)))


def _means(rounds: list[dict[str, Cost]]) -> dict[str, Cost]:
    return {stage: Cost(*(statistics.mean(one[stage][i] for one in rounds) for i in range(2))) for stage in STAGES}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
