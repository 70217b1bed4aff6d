"""Is the verdict on a run right? Trains runs that should learn and runs spoilt on purpose; the referee says of each
whether it learnt.

    python benchmarks/verdict.py             60 runs: the shipped ones of `learns.py`, and 30 spoilt; exits 1 below 57
    python benchmarks/verdict.py --known     those that are trained already; trains nothing

A run that was trained is kept under --work, beside those of `learns.py`, which count; so are its measures and the
pictures of its verdict: nothing is done twice, and a call that was stopped goes on where it was. Needs the emoji font.
"""

import dataclasses
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

sys.path[:0] = [str(Path(__file__).parent)]

import learns  # noqa: E402
from learns import Measures, Trial  # noqa: E402

from finetune import recipe  # noqa: E402
from finetune.cli import hush  # noqa: E402
from finetune.data.example import Dataset  # noqa: E402
from finetune.data.prepare import prepare as prepare_dataset  # noqa: E402
from finetune.errors import DataError  # noqa: E402
from finetune.evaluation.evaluate import evaluate  # noqa: E402
from finetune.evaluation.subject import exported, of_path  # noqa: E402
from finetune.events import Evaluated, unheard  # noqa: E402

RIGHT = 0.95
"""share of the runs that the verdict must be right about: 57 of 60"""
SPOILT_SUBJECTS = ("product", "style", "product-2", "style-2", "handbag")
OTHER_TRIGGER = "zwx"
"""of the runs that are asked for another word than they learnt"""


class Bars(NamedTuple):
    """When the referee says that a run learnt; wider than the bars of `learns.py`, which say that it did well."""

    fidelity: float = 0.8
    """of a product: of the real pictures' own similarity; else share of the pictures in which it is seen"""
    lost: float = 0.3
    """of pictures that show what was asked for, and of objects without the trigger, less than the base's"""


BARS = Bars()


class Row(NamedTuple):
    trial: Trial
    measures: Measures
    referee: bool
    verdict: Evaluated | None
    """None: the run itself was refused, which says that nothing was learnt"""

    @property
    def right(self) -> bool:
        return self.referee == (self.verdict is not None and self.verdict.learnt)


def main(
    work: Path = learns.WORK, jobs: int = 2,
    known: Annotated[bool, typer.Option("--known", help="only runs that are trained already")] = False,
) -> None:  # fmt: skip
    """Train what is due, then compare verdict and referee."""
    hush()
    work = learns.of_base(work) if known else learns.prepare(work)
    wanted = trials(work)
    if not known:
        for name in SPOILT_SUBJECTS:
            spoil(work, name)
        learns.carry_out(wanted, work, jobs)
    found = [row(work, trial) for trial in wanted if learns.record(work, trial).exists()]
    for one in found:
        learns.say(line(one))
    right = sum(one.right for one in found)
    learns.say(f"right in {right} of {len(found)} runs")
    if right < RIGHT * len(found):
        sys.exit(1)


def trials(work: Path) -> list[Trial]:
    """30 runs with the shipped settings, and 30 spoilt."""
    good = [Trial(name, "shipped", (), seed) for name in learns.subjects(work) for seed in learns.SEEDS]
    bad = [Trial(name, label, sets, 0) for name in SPOILT_SUBJECTS for label, sets in spoilt(work, name).items()]
    return [*good, *bad]


def spoilt(work: Path, name: str) -> dict[str, tuple[str, ...]]:
    """What is wrong with a run -> its settings."""
    found = recipe.load(Path(f"pocket-{learns.subjects(work)[name].kind}")).recipe
    rate, steps = found.optimizer.learning_rate, found.train.steps or 0
    return {
        "rate a hundredth": (f"optimizer.learning_rate={rate / 100:g}",),
        "a tenth of the steps": (f"train.steps={steps // 10}",),
        "equal captions": (f"data.path={work / 'equal' / name}", "data.trigger=sks"),
        "shuffled captions": (f"data.path={work / 'shuffled' / name}",),
        "wrong trigger": (f"data.path={work / 'trigger' / name}",),
        "burnt": (f"optimizer.learning_rate={rate * 20:g}",),
    }


def spoil(work: Path, name: str) -> None:
    """The datasets of the spoilt runs."""
    found = learns.subjects(work)[name].pictures()
    said = [example.caption for example in found.examples]
    other = [caption.replace(str(found.trigger), OTHER_TRIGGER) for caption in said]
    equal = [
        f"a photo of {found.trigger} {found.class_word}" if found.class_word else f"an image in {found.trigger} style"
    ]
    for what, captions, trigger in (
        ("equal", equal * len(said), found.trigger), ("shuffled", said[1:] + said[:1], found.trigger),
        ("trigger", other, OTHER_TRIGGER),
    ):  # fmt: skip
        learns.made(work / what / name, functools.partial(recaptioned, found, captions, trigger))


def recaptioned(found: Dataset, captions: Sequence[str], trigger: str | None, out: Path) -> None:
    """The same pictures with other captions; as a raw folder where `prepare` refuses such captions of a style."""
    with tempfile.TemporaryDirectory() as folder:
        for example, caption in zip(found.examples, captions, strict=True):
            target = Path(folder) / Path(example.name).name
            target.write_bytes(example.path.read_bytes())
            target.with_suffix(".txt").write_text(caption)
        try:
            prepare_dataset(Path(folder), out, trigger=trigger, class_word=found.class_word, kind=found.kind)
        except DataError:
            shutil.copytree(folder, out, dirs_exist_ok=True)


def row(work: Path, trial: Trial) -> Row:
    """What referee and verdict say of a run that was trained."""
    measures = Measures(**json.loads(learns.record(work, trial).read_text())["measures"])
    folder = work / "runs" / learns.record(work, trial).stem
    base = learns.record(work, Trial(trial.subject, "base", (), 0, False))
    before = Measures(**json.loads(base.read_text())["measures"]) if base.exists() else Measures(prompt=1.0, kept=1.0)
    told = None if measures.refused else verdict_on(folder, learns.subjects(work)[trial.subject].pictures())
    return Row(trial, measures, learnt(measures, before), told)


def learnt(found: Measures, base: Measures, bars: Bars = BARS) -> bool:
    """The referee's word."""
    kept = found.prompt >= base.prompt - bars.lost and found.kept >= base.kept - bars.lost
    return not found.refused and found.fidelity >= bars.fidelity and kept


def verdict_on(run: Path, asked: Dataset) -> Evaluated:
    """Of the pictures that the subject's own trigger gives, whatever the run was trained with."""
    subject = of_path(run)
    training = dataclasses.replace(subject.training, data=asked)
    return unheard(evaluate(dataclasses.replace(subject, path=exported(run), training=training)))


def line(one: Row) -> str:
    found, told = one.measures, one.verdict
    seen = f"{told.seen}, likeness {told.scores['likeness'].value:.2f}" if told else "refused"
    said = "learnt" if one.referee else "not learnt"
    return (
        f"{'right' if one.right else 'WRONG'}  {one.trial.subject:<10} {one.trial.label:<21} seed {one.trial.seed}  "
        f"referee: {said} (fidelity {found.fidelity:.2f}, as asked {found.prompt:.2f}, kept {found.kept:.2f})  "
        f"verdict: {seen}"
    )


if __name__ == "__main__":
    typer.run(main)
