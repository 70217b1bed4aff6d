"""A run's folder as a run leaves it, without a run: its log with a clock of its own, its record, its recipe."""

import json
from pathlib import Path

import pytest

from finetune.events import Event, Stepped
from finetune.reporting import jsonl


def one_step(step: int, loss: float = 0.5) -> Stepped:
    return Stepped(step, 100, loss, None, 1.0, {"unet": 1e-4}, 0.5, False)


def logged_run(
    folder: Path, *events: Event, outcome: str = "running", reason: str = "", begun: bool = True
) -> Path:  # fmt: skip
    """Of 100 steps; half a second passes between two events."""
    clock = iter(range(10_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl.time, "time", lambda: 1000 + next(clock) / 2)
        log = jsonl.JsonLines(folder / "events.jsonl")
        for event in events:
            log(event)
    if begun:
        (folder / "run.json").write_text(json.dumps({"outcome": outcome, "reason": reason, "steps": 100}))
        (folder / "recipe.toml").write_text('base = "pocket"')
    return folder
