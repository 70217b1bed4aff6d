"""The pictures of a run's page: before and after, over the steps, and those that were judged."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image

from finetune import reading
from finetune.data.images.decode import DECODER_ERRORS
from finetune.pages.html import inlined
from finetune.references import EVALUATION, step_folders, step_of, steps
from finetune.reporting.history import History

PAIR_PX, SAMPLE_PX, JUDGED_PX = 512, 192, 128
"""longer sides of pictures: before and after, over the steps, judged"""
MOST_PAIRS, MOST_ROWS, MOST_COLUMNS, MOST_JUDGED = 8, 8, 8, 24


class Shown(NamedTuple):
    """A picture inside the page, and what it was made from."""

    source: Markup
    width: int
    height: int
    facts: Mapping[str, str]

    @property
    def prompt(self) -> str:
        return self.facts.get("prompt", "")

    @property
    def seed(self) -> str:
        return self.facts.get("seed", "")


class Pair(NamedTuple):
    """The same prompt and seed, twice."""

    before: Shown
    after: Shown


class Pairs(NamedTuple):
    """before, after: what the two are of."""

    pairs: list[Pair]
    left_out: int
    before: str
    after: str


class Row(NamedTuple):
    prompt: str
    cells: list[Shown | None]
    """one a step; None: not made, or not to be read"""


class OverSteps(NamedTuple):
    steps: list[int]
    rows: list[Row]
    steps_left_out: int
    rows_left_out: int


class JudgedPictures(NamedTuple):
    with_trigger: list[Pair]
    without: list[Pair]
    left_out: int


def picture(path: Path, px: int) -> Shown | None:
    """None: it is not there, or cannot be read."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _picture(path, px, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _picture(path: Path, px: int, *_: int) -> Shown | None:
    """Kept while a run writes its page again and again."""
    try:
        with Image.open(path) as found:
            facts = {key: value for key, value in getattr(found, "text", {}).items() if isinstance(value, str)}
            return Shown(inlined(found, px), found.width, found.height, facts)
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None


def before_and_after(history: History) -> Pairs | None:
    """The last row of the base beside that of the exported file; while the run goes on, its first step beside its
    newest. None: there are no two yet.
    """
    samples = history.folder / "samples"
    finals = sorted(p for p in samples.glob("final-*") if reading.is_dir(p) and p.name != "final-base")
    if finals and reading.is_dir(base := samples / "final-base"):
        return _pairs(base, max(finals, key=_time), "the base, before training", "after it")
    folders = step_folders(samples)
    if len(folders) < 2:
        return None
    first, last = step_of(folders[0]), step_of(folders[-1])
    before = "before training" if first == 0 else f"after {first} steps"
    return _pairs(folders[0], folders[-1], before, f"after {last} steps")


def _time(path: Path) -> float:
    return path.stat().st_mtime


def _pairs(before: Path, after: Path, told_before: str, told_after: str) -> Pairs | None:
    names = sorted({p.name for p in before.glob("*.png")} & {p.name for p in after.glob("*.png")})
    made = [_pair(before / name, after / name, PAIR_PX) for name in names[:MOST_PAIRS]]
    found = [pair for pair in made if pair]
    return Pairs(found, max(0, len(names) - MOST_PAIRS), told_before, told_after) if found else None


def _pair(before: Path, after: Path, px: int) -> Pair | None:
    first, second = picture(before, px), picture(after, px)
    return Pair(first, second) if first and second else None


def over_steps(history: History) -> OverSteps | None:
    """None: nothing was sampled on the way."""
    folders = step_folders(history.folder / "samples")
    names = sorted({path.name for folder in folders for path in folder.glob("*.png")})
    if not names:
        return None
    shown = evenly(folders, MOST_COLUMNS)
    rows = [_row([picture(folder / name, SAMPLE_PX) for folder in shown]) for name in names[:MOST_ROWS]]
    return OverSteps([step_of(f) for f in shown], rows, len(folders) - len(shown), max(0, len(names) - MOST_ROWS))


def _row(cells: list[Shown | None]) -> Row:
    return Row(next((cell.prompt for cell in cells if cell and cell.prompt), ""), cells)


def evenly(many: Sequence[Path], most: int) -> list[Path]:
    """At most so many, the first and the last among them."""
    if len(many) <= most:
        return list(many)
    return [many[round(i * (len(many) - 1) / (most - 1))] for i in range(most)]


def judged_pictures(history: History, trigger: str) -> JudgedPictures | None:
    """The pictures that the verdict was told from: of the base, and of the exported file; while there is none, of the
    candidate that was scored last. None: nothing was judged yet.
    """
    adapter = _judged_file(history)
    if not adapter:
        return None
    files = sorted((history.folder / EVALUATION).glob("*.png"), key=_time)
    made = {file: facts for file in files if (facts := _facts(file)) and facts.get("seed")}
    ours, base = _by_prompt(made, (adapter, f"{adapter}:1")), _by_prompt(made, ("",))
    both = sorted(ours.keys() & base.keys(), key=lambda key: (int(key[1]), key[0]))
    pairs = [pair for key in both[:MOST_JUDGED] if (pair := _pair(base[key], ours[key], JUDGED_PX))]
    if not pairs:
        return None
    asked = [pair for pair in pairs if not trigger or trigger in pair.after.prompt]
    return JudgedPictures(asked, [pair for pair in pairs if pair not in asked], max(0, len(both) - MOST_JUDGED))


def _judged_file(history: History) -> str:
    """The name of the adapter that was judged last; empty: none was."""
    told = next((event for event in reversed(history.events) if event.name in ("evaluated", "scored")), None)
    if told is None:
        return ""
    if told.name == "evaluated":
        return Path(str(told.values["path"])).name
    found = steps(history.folder).get(int(told.values["step"]))
    return found.name if found else ""


def _by_prompt(made: Mapping[Path, Mapping[str, str]], named: tuple[str, ...]) -> dict[tuple[str, str], Path]:
    """(prompt, seed) -> the newest picture of the row that is called so."""
    return {
        (facts.get("prompt", ""), facts["seed"]): file
        for file, facts in made.items()
        if facts.get("adapter") in named and facts["seed"].isdecimal()
    }


def _facts(path: Path) -> Mapping[str, str]:
    """What a PNG says of itself; read from its head alone."""
    try:
        with Image.open(path) as found:
            return dict(getattr(found, "text", {}))
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return {}
