"""Where a run stands, read from its folder: how far it is, how it ended, what to look at, how to go on. No torch."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from finetune import reading
from finetune.errors import Action, RunError, action
from finetune.reporting.history import LOG, RECIPE_FILE, RECORD, History, Told, read_history
from finetune.reporting.owner import Owner, owner_of

RunState = Literal["starting", "running", "done", "not learnt", "interrupted", "failed", "cut off"]
LIVING: tuple[RunState, ...] = ("starting", "running")
"""states in which a process is at work on the run"""
REPORT = "report.html"
SMOOTHED, TIMED = 20, 100
"""steps over which the loss is averaged, and over which the speed is taken"""
SEARCH_DEPTH = 3
"""levels of folders in which runs are looked for"""


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run, while it goes on and after it ended."""

    folder: Path
    state: RunState
    """"cut off": its process is gone, and did not write down why (killed, or the machine went off)"""
    reason: str
    """why it ended; empty while it goes on, and when it did what it was asked for"""
    step: int
    """the last one taken"""
    steps: int
    """how many there will be; 0: not known yet"""
    stage: str
    """what it is at: "encoding images", "training", "evaluating"; empty when it has ended"""
    loss: float | None
    """mean of the last SMOOTHED steps"""
    speed: float | None
    """steps a second, pauses for pictures and evaluation included"""
    seconds_left: float | None
    """to the last step; None when it has ended, or when it is not known"""
    scores: Mapping[str, float]
    """the last that were measured, by name"""
    scored_step: int | None
    seen: str
    """in how many prompts with the trigger the product or style was seen, such as 9/10"""
    page: Path | None
    """the run's report, to open in a browser"""
    sheet: Path | None
    """the newest sheet of pictures"""
    adapter: Path | None
    """the exported file, else the newest that can be used"""
    owner: Owner | None
    """the process at work on it"""
    resume: Action | None
    """how to go on with it; None: it is done, or goes on"""
    updated: float | None
    """when it was last heard of, in seconds since 1970"""
    damage: tuple[str, ...]
    """what of its files cannot be read: it may have come further, or ended otherwise, than is told here"""

    @property
    def lives(self) -> bool:
        return self.state in LIVING

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, paths as text, the way to go on as a call."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        plain["owner"] = self.owner._asdict() if self.owner else None
        plain["resume"] = str(self.resume) if self.resume else None
        return {**plain, "scores": dict(self.scores)}


def resuming(out: Path) -> Action:
    """How to go on with the run in a folder."""
    return action("train", recipe=out / RECIPE_FILE, out=out, resume=True)


def run_folders(places: Sequence[Path]) -> list[Path]:
    """The run folders among these folders and beneath them, in order of their names.

    Raises:
        RunError: a folder is none, or there is no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not reading.is_dir(place):
            raise RunError(f"there is no folder {place}", "name a run's folder, or a folder of runs")
        runs = list(_runs_beneath(place, SEARCH_DEPTH))
        if not runs:
            raise RunError(f"no run in {place}", "name a run's folder, which `train` was given as `out`")
        found |= dict.fromkeys(runs)
    return list(found)


def read_status(folder: Path) -> RunStatus:
    """Where the run in a folder stands. Never fails for what is in its files."""
    before = owner_of(folder)
    history = read_history(folder)
    owner = before and owner_of(folder)  # one that ended meanwhile wrote down how
    history = history if owner == before else read_history(folder)
    state = _state(history, owner)
    lives, speed = state in LIVING, steps_a_second(history)
    left = (history.steps - history.step) / speed if speed and lives and history.steps else None
    scored = next((e for e in reversed(history.events) if e.name in ("scored", "evaluated")), None)
    return RunStatus(
        folder, state, _reason(history, state), history.step, history.steps, _stage(history) if lives else "",
        _loss(history.every("stepped")), speed, left, _scores(scored), _scored_step(history, scored),
        str(scored.values.get("seen", "")) if scored else "", _there(folder / REPORT), _sheet(history),
        _adapter(history), owner, _resume(history, state), history.events[-1].time if history.events else None,
        history.damage,
    )  # fmt: skip


def is_run(folder: Path) -> bool:
    return reading.is_file(folder / RECORD) or reading.is_file(folder / LOG)


def _runs_beneath(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except OSError:
            return
        for name in inner:
            if not name.startswith("."):
                yield from _runs_beneath(folder / name, depth - 1)


def _state(history: History, owner: Owner | None) -> RunState:
    if owner:
        return "running" if history.outcome == "running" else "starting"
    ended: dict[str, RunState] = {"done": "done", "not learnt": "not learnt", "interrupted": "interrupted",
                               "failed": "failed"}  # fmt: skip
    return ended.get(history.outcome, "cut off")


def _reason(history: History, state: RunState) -> str:
    if state in LIVING or state == "done":
        return ""
    if state == "cut off" and any(said.startswith(RECORD) for said in history.damage):
        return f"its process is gone, and {RECORD}, which tells why, cannot be read"
    if state == "cut off":
        return "its process is gone and left no reason: it was killed, ran out of memory, or the machine went off"
    return str(history.record.get("reason", ""))


def _resume(history: History, state: RunState) -> Action | None:
    begun = reading.is_file(history.folder / RECIPE_FILE)
    return resuming(history.folder) if begun and state not in ("done", "not learnt", *LIVING) else None


def _this_time(history: History) -> list[Told]:
    """The steps taken since the run was last begun or resumed."""
    start = max((n for n, event in enumerate(history.events) if event.name == "resumed"), default=-1)
    return [event for event in history.events[start + 1 :] if event.name == "stepped"]


def steps_a_second(history: History) -> float | None:
    """Of the last TIMED steps, pauses for pictures and evaluation included; None: too few were taken yet."""
    last = _this_time(history)[-TIMED:]
    if len(last) < 2 or last[-1].time <= last[0].time:
        return None
    return (len(last) - 1) / (last[-1].time - last[0].time)


def _loss(steps: Sequence[Told]) -> float | None:
    """A loss that was not finite is text in the log, and left out."""
    losses = [event.values.get("loss") for event in steps[-SMOOTHED:]]
    finite = [loss for loss in losses if isinstance(loss, float | int) and math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else None


def _stage(history: History) -> str:
    last = history.last("stage")
    return str(last.values.get("name", "")) if last else ""


def _scores(scored: Told | None) -> dict[str, float]:
    found = scored.values.get("scores") if scored else None
    if not isinstance(found, Mapping):
        return {}
    values = {str(name): one.get("value") for name, one in found.items() if isinstance(one, Mapping)}
    return {name: value for name, value in values.items() if isinstance(value, float | int)}


def _scored_step(history: History, scored: Told | None) -> int | None:
    """Of a verdict, the step that was exported."""
    if scored is None:
        return None
    if scored.name == "scored":
        return int(scored.values["step"])
    picked = history.record.get("picked_step")
    return picked if isinstance(picked, int) else history.step


def _there(path: Path | None) -> Path | None:
    return path if path and reading.exists(path) else None


def _sheet(history: History) -> Path | None:
    """The final one, else that of the newest sampled step."""
    found = sorted((history.folder / "samples").glob("step-*.png"))
    return _there(history.folder / "sheet.png") or (found[-1] if found else None)


def _adapter(history: History) -> Path | None:
    """The exported file, else the newest candidate; the folder may have been moved since."""
    done = sorted((history.folder / "adapter").glob("*.safetensors"))
    candidates = (history.folder / "candidates").glob("step-*/*.safetensors")
    some = sorted(file for file in candidates if file.parent.name[5:].isdecimal())
    return done[0] if done else (some[-1] if some else None)
