"""A step that cannot be saved where the run is: it is saved elsewhere, as a run's folder that can be resumed."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from finetune import reading
from finetune.errors import RunError
from finetune.planning.names import file_name
from finetune.training import candidates
from finetune.training.begin import Run
from finetune.training.folder import RunFolder
from finetune.training.stop import resuming


def unsaved(run: Run, error: OSError) -> RunError:
    """What is said of a step that could not be saved in the run's folder, after it was saved elsewhere."""
    out, step = run.folder.path, run.state.step
    said = f"cannot save step {step} in {out}: {error.strerror or error}"
    rescued = next((place for place in _places(out) if _saved(run, place)), None)
    if rescued is None:
        return RunError(said, "free some space, then resume", resuming(out))
    return RunError(f"{said}; the state of step {step} is in {rescued}", "go on there", resuming(rescued))


def _places(out: Path) -> Iterator[Path]:
    """Beside the run's folder; then where the system keeps what is temporary, which may be another disk."""
    yield out.with_name(f"{out.name}-rescued-{os.getpid()}")
    yield Path(tempfile.gettempdir()) / f"{file_name(out.name)}-rescued-{os.getpid()}"


def _saved(run: Run, place: Path) -> bool:
    """Whether the state is in that folder now, which is new."""
    if reading.exists(place):
        return False
    folder = RunFolder(place)
    folder.identity, folder.file, folder.picked = run.folder.identity, run.folder.file, run.folder.picked
    try:
        folder.describe(run.plan, "interrupted")
        folder.save(run.state, run.plan.recipe.train.keep_last, candidates.described(run))
    except OSError:
        return False
    return True
