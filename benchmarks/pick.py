"""Is the right step shipped? Trains three times too long, scores candidates on the way, and lets the referee look at
each of them.

    python benchmarks/pick.py            six subjects, two seeds; exits 1 when a bar is missed
    python benchmarks/pick.py --known    what was measured already; trains nothing

The runs go to the end, so that every candidate can be looked at. Which of them `evaluate.pick = "best"` ships, and
where `evaluate.stop = "auto"` ends, follows from their scores. A run takes a quarter of an hour of one core: what was
measured is kept in benchmarks/kept/pick, by base, recipe and seed, and not repeated until its file is removed. Needs
the emoji font.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

sys.path[:0] = [str(Path(__file__).parent)]

import learns  # noqa: E402
from learns import Measures, Trial  # noqa: E402

from finetune import recipe  # noqa: E402
from finetune import tensors as weights  # noqa: E402
from finetune.cli import hush  # noqa: E402
from finetune.errors import NotLearnt  # noqa: E402
from finetune.evaluation.choose import Limits, best, reason_to_stop  # noqa: E402
from finetune.events import Score, Scored  # noqa: E402
from finetune.recipe import Evaluate  # noqa: E402
from finetune.references import adapter_path  # noqa: E402
from finetune.training import run  # noqa: E402

SUBJECTS = ("product", "style", "handbag", "lamp", "lines", "flat")
SEEDS = (0, 1)
KEPT = Path(__file__).parent / "kept" / "pick"
TOO_LONG, EVALUATIONS = 3, 12
"""times the steps of the shipped recipe, and how often they are evaluated"""
DEFAULTS = Evaluate()


class Looked(NamedTuple):
    """A candidate: what the run knew of it, and what the referee says."""

    scored: Scored
    worth: float
    """mean of three shares: seen, as asked, and other objects kept"""


class Outcome(NamedTuple):
    trial: Trial
    shipped: Looked
    stopped: int
    """the last step that is trained"""
    best: float
    """worth of the best candidate of the whole run"""
    last: float
    """worth of the whole run's last candidate"""
    steps: int


def main(
    work: Path = learns.WORK, jobs: int = 2,
    known: Annotated[bool, typer.Option("--known", help="only what was measured already")] = False,
) -> None:  # fmt: skip
    """Train and look where it is due, then compare."""
    hush()
    work = learns.of_base(work) if known else learns.prepare(work)
    wanted = [Trial(name, "too long", (), seed) for seed in SEEDS for name in SUBJECTS]
    if not known:
        carry_out(wanted, work, jobs)
    found = [outcome(trial, read(work, trial)) for trial in wanted if record(work, trial).exists()]
    for one in found:
        learns.say(line(one))
    missed = [f"{what}: {hits} of {len(found)}, bar {bar} of {len(wanted)}" for what, hits, bar in bars(found)
              if hits * len(wanted) < bar * len(found)]  # fmt: skip
    for what, hits, _ in bars(found):
        learns.say(f"{what}: {hits} of {len(found)}")
    if missed:
        sys.exit("missed: " + "; ".join(missed))


def bars(found: Sequence[Outcome]) -> list[tuple[str, int, int]]:
    """(what, in how many runs, in how many of twelve it must be)."""
    return [
        ("shipped has 95 % of the best candidate's worth", sum(o.shipped.worth >= 0.95 * o.best for o in found), 10),
        ("shipped beats or equals the last one", sum(o.shipped.worth >= o.last - 1e-9 for o in found), 11),
        ("stopped before two thirds of the steps", sum(3 * o.stopped < 2 * o.steps for o in found), 8),
    ]


def outcome(trial: Trial, some: Sequence[Looked]) -> Outcome:
    """What would have been shipped, and where the run would have stopped, with the recipe's defaults."""
    seen = [one.scored for one in some]
    until = next((n for n in range(1, len(seen)) if reason_to_stop(seen[:n], DEFAULTS.patience)), len(seen))
    limits = Limits(DEFAULTS.max_drift, DEFAULTS.min_prompt, DEFAULTS.max_memorisation)
    chosen = best(seen[:until], limits)
    shipped = next(one for one in some if one.scored.step == chosen.step)
    return Outcome(trial, shipped, seen[until - 1].step, max(one.worth for one in some), some[-1].worth, seen[-1].step)


def worth(found: Measures) -> float:
    return (min(found.fidelity, 1.0) + found.prompt + found.kept) / 3


def carry_out(trials: Sequence[Trial], work: Path, jobs: int) -> None:
    due = [trial for trial in trials if not record(work, trial).exists()]
    learns.say(f"{len(trials) - len(due)} of {len(trials)} runs are known")
    with ProcessPoolExecutor(jobs, get_context("spawn"), learns.one_core) as pool:
        running = {pool.submit(measure, trial, work): trial for trial in due}
        for done in as_completed(running):
            content = [
                {"step": one.scored.step, "seen": one.scored.seen, "worth": one.worth,
                 "scores": {name: list(score) for name, score in one.scored.scores.items()}}
                for one in done.result()
            ]  # fmt: skip
            weights.write_bytes(_lines(content).encode(), record(work, running[done]))
            learns.say(line(outcome(running[done], read(work, running[done]))))


def _lines(content: Sequence[object]) -> str:
    """JSON with a line for each candidate."""
    return "[\n" + ",\n".join(map(json.dumps, content)) + "\n]\n"


def measure(trial: Trial, work: Path) -> list[Looked]:
    """Train to the far end, and look at every candidate."""
    hush()
    subject = learns.subjects(work)[trial.subject]
    name = f"pocket-{subject.kind}"
    steps = TOO_LONG * (recipe.load(Path(name)).recipe.train.steps or 0)
    folder = work / "runs" / record(work, trial).stem
    shutil.rmtree(folder, ignore_errors=True)
    loaded = recipe.load(Path(name), [
        f"data.path={subject.data}", "sample.every=0", "sample.steps=1", 'sample.prompts=["a star"]',
        f"train.seed={trial.seed}", f"train.steps={steps}", "train.checkpoint_every=100000",
        f"evaluate.every={steps // EVALUATIONS}", "evaluate.count=10",
    ])  # fmt: skip
    found: list[Scored] = []
    with suppress(NotLearnt):  # so long a run may well be burnt
        for event in run.run(loaded, folder):
            if isinstance(event, Scored):
                found.append(event)
    return [Looked(one, worth(learns.look(subject, work, adapter_path(f"{folder}@{one.step}")))) for one in found]


def read(work: Path, trial: Trial) -> list[Looked]:
    told = json.loads(record(work, trial).read_text())
    return [
        Looked(Scored(t["step"], t["seen"], {n: Score(*s) for n, s in t["scores"].items()}), t["worth"]) for t in told
    ]


def record(work: Path, trial: Trial) -> Path:
    """Where it is kept: `work` is called after the base."""
    folder = KEPT / work.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{learns.record(work, trial).stem}.json"


def line(one: Outcome) -> str:
    return (
        f"{one.trial.subject:<8} seed {one.trial.seed}  shipped step {one.shipped.scored.step} of {one.steps}, worth "
        f"{one.shipped.worth:.2f}; best {one.best:.2f}, last {one.last:.2f}; stopped at {one.stopped}"
    )


if __name__ == "__main__":
    typer.run(main)
