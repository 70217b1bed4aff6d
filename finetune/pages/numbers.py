"""The numbers of a run's page: scores, candidates, what was verified, and how much each layer changed."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune.errors import RunError
from finetune.evaluation.meaning import HELD_OUT, MEANINGS, meaning, reading
from finetune.pages.outcome import latest
from finetune.reading import is_file, read_json
from finetune.references import CANDIDATES, steps
from finetune.reporting.history import History

MOST_LAYERS = 60
"""blocks in the list of changes; of more, the most changed"""
_CANDIDATE_SCORES = "scores.json"


class ScoreRow(NamedTuple):
    """A score with its interval of 95 %, and what it means."""

    name: str
    title: str
    value: float
    low: float
    high: float
    reading: str
    """what this value says, in a word or two; empty: nothing by itself"""
    tone: str
    sentence: str

    @property
    def at(self) -> float:
        """Where the value is on a bar from 0 to 1, in percent."""
        return _percent(self.value)

    @property
    def left(self) -> float:
        """Where the interval begins on it."""
        return _percent(self.low)

    @property
    def width(self) -> float:
        """How long the interval is on it."""
        return _percent(self.high) - _percent(self.low)


class CandidateRow(NamedTuple):
    """A step whose adapter was kept: how it is named, and its scores where it was scored. picked: it is the file's."""

    step: int
    named: str
    picked: bool
    seen: str
    scores: Mapping[str, ScoreRow]


class LayerRow(NamedTuple):
    """How much a block of the model changed: |dW| / |W|, root mean square over its modules."""

    name: str
    share: float
    modules: int
    width: float
    """of its bar, in percent of the largest"""


class Layers(NamedTuple):
    rows: list[LayerRow]
    left_out: int


class Check(NamedTuple):
    """What was verified: a question, its answer, and the number behind it."""

    question: str
    answer: str
    good: bool


def score_rows(found: Mapping[str, Any]) -> list[ScoreRow]:
    """Of scores as events or scores.json have them; what is not a score is left out."""
    ordered = [*(name for name in MEANINGS if name in found), *(name for name in found if name not in MEANINGS)]
    rows = [(name, _triple(found[name])) for name in ordered]
    return [ScoreRow(n, _title(n), *three, *reading(n, three[0]), meaning(n).sentence) for n, three in rows if three]


def _percent(value: float) -> float:
    return round(100 * min(1.0, max(0.0, value)), 1)


class Scores(NamedTuple):
    """Of the exported file: of generated pictures, and of held-out ones at each level of noise."""

    rows: list[ScoreRow]
    held_out: list[ScoreRow]


def final_scores(history: History) -> Scores | None:
    """None: it was not judged."""
    verdict = latest(history, "evaluated")
    if verdict is None:
        return None
    rows = score_rows(verdict.values["scores"])
    held_out = [row for row in rows if row.name.startswith(HELD_OUT)]
    return Scores([row for row in rows if row not in held_out], held_out)


def candidates(history: History) -> list[CandidateRow]:
    """The earliest first."""
    told = latest(history, "finished") or latest(history, "picked")
    picked = told.values["step"] if told else history.record.get("picked_step")
    told_of = {int(event.values["step"]): event.values for event in history.every("scored")}
    found = [(step, path) for step, path in steps(history.folder).items() if is_file(path)]
    return [_candidate(history.folder, step, step == picked, told_of.get(step, {})) for step, _ in found]


def _candidate(run: Path, step: int, picked: bool, told: Mapping[str, Any]) -> CandidateRow:
    kept = _read(run / CANDIDATES / f"step-{step:06d}" / _CANDIDATE_SCORES) or told
    rows = score_rows(kept.get("scores", {}))
    seen = str(kept.get("seen", "")).replace("/", " of ")
    return CandidateRow(step, f"{run.resolve()}@{step}", picked, seen, {row.name: row for row in rows})


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, RunError, "")
    except RunError:
        return {}


def changed_layers(history: History) -> Layers | None:
    """By block; None: the run did not tell, or has not come so far."""
    told = latest(history, "weights_changed")
    if told is None:
        return None
    blocks: dict[str, list[float]] = defaultdict(list)
    for module, share in told.values["modules"].items():
        blocks[block_of(module)].append(float(share))
    means = {name: math.sqrt(sum(s * s for s in shares) / len(shares)) for name, shares in blocks.items()}
    largest = max(means.values(), default=0.0) or 1.0
    shown = set(sorted(means, key=lambda name: -means[name])[:MOST_LAYERS])
    rows = [LayerRow(n, m, len(blocks[n]), 100 * m / largest) for n, m in means.items() if n in shown]
    return Layers(rows, len(means) - len(rows))


def block_of(module: str) -> str:
    """The block that a module stands in: all up to the first number, such as unet.down_blocks.0."""
    parts = module.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), 1)
    return ".".join(parts[: number + 1])


def checks(history: History) -> list[Check]:
    """Of the exported file, the last one that was verified; in the words of somebody who was not there."""
    told = latest(history, "verified")
    if told is None:
        return []
    values = told.values
    hit, expected = int(values["hit"]), int(values["expected"])
    found = [Check("Is every trained layer in the file?", f"{hit} of {expected} are", hit == expected)]
    if (live := _number(values.get("live"))) is not None:
        found.append(Check("Is it, read back, what was trained?", _difference(live, "the trained weights"), True))
    if (outputs := _number(values.get("outputs"))) is not None:
        question = "Does it do in a fresh base what the trained model did?"
        found.append(Check(question, _difference(outputs, "what training changed"), True))
    if (stock := _number(values.get("stock_output"))) is not None:
        question = "Does another program (stock diffusers) draw the same with it?"
        found.append(Check(question, _difference(stock, "what training changed"), True))
    return [*found, *(Check("Worth knowing", str(one), False) for one in values.get("findings", ()))]


def _difference(share: float, of: str) -> str:
    return "yes, exactly" if share == 0 else f"yes, to {share:.1g} of {of}"


def learning(history: History) -> list[str]:
    """What training did to the prediction of its own pictures, in sentences."""
    told = latest(history, "training_effect")
    if told is None:
        return []
    base, adapted = float(told.values["base"]), float(told.values["adapted"])
    said = [f"The training pictures are predicted {_better(1 - adapted / base)} than by the base "
            f"(loss {base:.3f} before, {adapted:.3f} after)."]  # fmt: skip
    if told.values.get("adapted_fit"):
        share = float(told.values["adapted_fit"]["share"])
        said.append(
            f"For {share:.0%} of the pictures, it finds the picture's own caption more fitting than the others'."
        )
    return said


def _better(gain: float) -> str:
    return f"{gain:.0%} better" if gain >= 0 else f"{-gain:.0%} worse"


def _title(name: str) -> str:
    return name.replace(HELD_OUT, "noise ").capitalize()


def _triple(found: object) -> tuple[float, float, float] | None:
    """(value, low, high), of a table or a list of them."""
    if isinstance(found, Mapping):
        found = [found.get(key) for key in ("value", "low", "high")]
    if not isinstance(found, list) or len(found) != 3:
        return None
    numbers = [round(number, 2) + 0.0 for one in found if (number := _number(one)) is not None]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _number(found: object) -> float | None:
    """None: it is none, or not finite."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return float(found) if is_number else None  # type: ignore[arg-type]


def finite(values: Iterable[tuple[int, object]]) -> tuple[list[int], list[float]]:
    """(steps, values) of those that are finite numbers."""
    kept = [(step, number) for step, one in values if (number := _number(one)) is not None]
    return [step for step, _ in kept], [number for _, number in kept]
