"""A run's page: all that its folder tells, in one HTML file for people, whatever state the run is in."""

import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from finetune import writing
from finetune.errors import Action, RunError
from finetune.pages import figures, numbers, pictures
from finetune.pages.delivery import data_words
from finetune.pages.html import render, write_page
from finetune.pages.outcome import Outcome, outcome_of
from finetune.pages.settings import settings_of
from finetune.pages.text import plain_text, shown_text
from finetune.pages.training_data import training_data
from finetune.reporting.history import History, read_history
from finetune.reporting.status import REPORT, is_run

REFRESH_S = 30
Wording = Callable[[Action], str]
_FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, OverflowError, OSError)
"""what a record that was written by another version, or damaged, may bring up in one section"""
_Section = TypeVar("_Section")


def write_report(run: Path, out: Path | None = None, worded: Wording = str) -> Path:
    """Write the page of a run's folder; to RUN/report.html unless `out` says where. Returns where it is.

    worded: how the page writes what its reader may do next; as calls of Python unless said.

    Raises:
        RunError: there is no run at all, or the page cannot be written.
    """
    if not is_run(run):
        raise RunError(f"{run} holds no run", "name the folder that a run was given as `out`")
    path = out or run / REPORT
    if out:
        writing.try_file(path)
    try:
        write_page(report(run, worded), path)
    except OSError as e:
        raise RunError(f"cannot write {path}: {e.strerror}", "choose another `out`") from e
    return path


def report(run: Path, worded: Wording = str) -> str:
    """The page of a run's folder as HTML; worded: as for `write_report`."""
    history = read_history(run)
    damage = list(history.damage)

    def section(what: str, make: Callable[[History], _Section]) -> _Section | None:
        try:
            return make(history)
        except _FAULTS:
            damage.append(f"{what} cannot be shown: what the run wrote of it cannot be read")
            return None

    outcome = section("the outcome", outcome_of) or _UNKNOWN
    words = section("the trigger", data_words)
    judged = partial(pictures.judged_pictures, trigger=words.trigger if words else "")
    return render(
        "report.html",
        name=name_of_run(history), folder=str(run.resolve()), serve=serving(run), history=history, outcome=outcome,
        refresh=REFRESH_S, delivery=outcome.delivery,
        written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        pairs=section("before and after", pictures.before_and_after),
        over_steps=section("the pictures over the steps", pictures.over_steps),
        judged=section("the pictures that were judged", judged),
        scores=section("the scores", numbers.final_scores),
        candidates=section("the candidates", numbers.candidates) or [],
        learning=section("what training did", numbers.learning) or [],
        figures=section("the curves", figures.figures),
        layers=section("the change by layer", numbers.changed_layers),
        data=section("the training pictures", training_data),
        checks=section("what was verified", numbers.checks) or [],
        settings=section("the recipe", settings_of),
        warnings=section("the warnings", run_warnings) or [],
        damage=damage, worded=worded, shown=shown_text, plain=plain_text,
    )  # fmt: skip


_UNKNOWN = Outcome("not begun", "What became of it cannot be read", "", "wait", (), (), None, "")


def name_of_run(history: History) -> str:
    return str(history.recipe.get("name") or history.folder.resolve().name)


def serving(run: Path) -> str:
    """The command that shows the folder to browsers at an address of this machine alone; a tunnel leads there."""
    return shlex.join(["python", "-m", "http.server", "8000", "-b", "127.0.0.1", "-d", str(run.resolve())])


def run_warnings(history: History) -> list[str]:
    """What the run warned of, each once; and steps that changed nothing."""
    told = [str(event.values.get("text", "")) for event in history.every("warned")]
    skipped = sum(bool(event.values.get("skipped")) for event in history.every("stepped"))
    if skipped:
        told.append(f"{skipped} steps changed nothing, as their loss was no number: lower optimizer.learning_rate")
    return list(dict.fromkeys(told))
