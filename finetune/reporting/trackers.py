"""A run in the trackers that its recipe names: TensorBoard beside the run, Weights & Biases, Trackio and MLflow.

The last three are Accelerate's. Each works in a thread of its own, and what goes wrong there is said, once: no
network, no login and no full disk costs a run a step.
"""

import json
import secrets
import shlex
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from finetune.choices import TrackerName
from finetune.errors import RunError
from finetune.events import Event, Resumed
from finetune.reading import read_json
from finetune.reporting.readings import Reading, Readings
from finetune.reporting.tensorboard import TensorBoard
from finetune.saving import write_bytes

IDS = "trackers.json"
"""in a run's folder: what each tracker calls the run, by which a resumed one goes on with the same curves"""
FOLDER = "tensorboard"
_WRITING = Lock()
_FIRST_S, _LAST_S = 20.0, 60.0
"""how long a run waits for its trackers to open (they may do so later), and to send the rest at the end"""


@dataclass(frozen=True)
class Described:
    """What trackers are told of a run before its first step."""

    folder: Path
    project: str
    name: str
    config: Mapping[str, str | int | float | bool | None]
    """recipe key -> value"""
    recipe: str
    """as text"""
    images: float
    """that one step looks at, over all GPUs"""


def how_to_open(to: Sequence[TrackerName], folder: Path, project: str) -> str:
    """One line that says where the curves are; empty for none."""
    ways = {
        "tensorboard": shlex.join(["tensorboard", "--logdir", str(folder / FOLDER)]),
        "wandb": f"W&B, project {project}",
        "trackio": shlex.join(["trackio", "show", "--project", project]),
        "mlflow": "mlflow ui",
    }
    return f"curves and pictures: {'; '.join(ways[name] for name in to)}" if to else ""


class Trackers:
    """Listens to a run. Nothing is opened before `begin`."""

    def __init__(self) -> None:
        self._board: TensorBoard | None = None
        self._remote: list[Remote] = []
        self._entries = Readings()
        self._resumed: Resumed | None = None
        self._faults: list[str] = []

    def begin(self, to: Sequence[TrackerName], run: Described) -> None:
        """Open those that the recipe names."""
        self._entries = Readings(run.images)
        if "tensorboard" in to:
            text = "    " + run.recipe.replace("\n", "\n    ")  # as Markdown shows code
            self._board = TensorBoard(run.folder / FOLDER, Readings(run.images), {"recipe": text})
            if self._resumed:
                self._board(self._resumed)
        with redirect_stdout(StringIO()):  # some print, where only our JSON may be
            self._remote = [Remote(name, run) for name in to if name != "tensorboard"]
            wait([opening for one in self._remote for opening in one.pending], _FIRST_S)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Resumed):
            self._resumed = event
        self._into_board(event)
        if self._remote and (reading := self._entries(event)):
            for one in self._remote:
                one.log(reading)

    def faults(self) -> list[str]:
        """What has gone wrong since this was last asked, a sentence each."""
        found = [*self._faults, *(fault for one in self._remote for fault in one.faults())]
        self._faults = []
        return found

    def close(self) -> None:
        """All that was told is sent."""
        if self._board:
            self._without_board(self._board.close)
        with redirect_stdout(StringIO()):
            for one in self._remote:
                one.finish()
            wait([sending for one in self._remote for sending in one.pending], _LAST_S)
            for one in self._remote:
                one.close()

    def _into_board(self, event: Event) -> None:
        if self._board:
            self._without_board(partial(self._board, event))

    def _without_board(self, call: Callable[[], None]) -> None:
        """A disk that fails costs the run its curves, and nothing else."""
        try:
            call()
        except OSError as e:
            self._faults.append(f"tensorboard: {e}; the run goes on without its curves")
            self._board = None


class Remote:
    """One of Accelerate's trackers, in a thread of its own, in which its calls run one after the other."""

    def __init__(self, name: TrackerName, run: Described) -> None:
        self.name, self.run = name, run
        self._calls: SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = SimpleQueue()
        self.pending: deque[Future[None]] = deque()
        """its calls, each in turn"""
        self._tracker: Any = None
        self._said = self._closed = False
        # no executor: a program that ends waits for an executor's threads, and one of a dead server never ends
        Thread(target=self._work, name=name, daemon=True).start()
        self._do(self._start)

    def log(self, reading: Reading) -> None:
        self._do(self._log, reading)

    def faults(self) -> list[str]:
        """Its first failure, in a sentence. One that could not be opened is told nothing more."""
        while self.pending and self.pending[0].done():
            error = self.pending.popleft().exception()
            if error is not None and not self._said:
                self._said = True
                gone = "" if self._tracker else ", and the run goes on without it"
                lines = str(error).strip().splitlines() or [type(error).__name__]
                return [f"{self.name}: {lines[0]}{gone or '; some of its curves are missing, the run is unharmed'}"]
        return []

    def finish(self) -> None:
        """Have it send the rest; after this it is told nothing."""
        self._do(self._finish)
        self._closed = True
        self._calls.put(None)

    def close(self) -> None:
        """Give up what is not sent by now."""
        late = [call for call in self.pending if not call.done()]
        for call in late:
            call.cancel()
        if late:
            self.pending = deque([_failed(TimeoutError("it does not answer"))])

    def _do(self, call: Callable[..., None], *arguments: object) -> None:
        if not self._closed:
            future: Future[None] = Future()
            self.pending.append(future)
            self._calls.put((future, partial(call, *arguments)))

    def _work(self) -> None:
        """In its own thread: one call after the other, until there are no more."""
        while one := self._calls.get():
            future, call = one
            if future.set_running_or_notify_cancel():
                _settle(future, call)

    def _start(self) -> None:
        known = _known(self.run.folder)
        before = known.get(self.name, "")
        tracker, own = _OPENERS[self.name](self.run, before)
        tracker.start()
        if not before:
            # MLflow decides on its own name for the run
            _remember(self.run.folder, self.name, own or tracker.tracker.info.run_id)
        if not before or self.name != "mlflow":  # there a value is written once
            tracker.store_init_configuration(dict(self.run.config))
        self._tracker = tracker

    def _log(self, reading: Reading) -> None:
        if self._tracker is None:
            return
        if reading.values:
            self._tracker.log(dict(reading.values), step=reading.step)
        for name, path in reading.pictures.items():
            _PICTURES[self.name](self._tracker, name, path, reading.step)
        for name, text in reading.texts.items():
            _TEXTS[self.name](self._tracker, name, text, reading.step)

    def _finish(self) -> None:
        if self._tracker is not None:
            self._tracker.finish()


def _settle(future: "Future[None]", call: Callable[[], None]) -> None:
    """As an executor does it."""
    try:
        call()
    except BaseException as e:  # noqa: BLE001  (whatever it is, it is the future's, and `faults` tells it)
        future.set_exception(e)
    else:
        future.set_result(None)


def _failed(error: Exception) -> "Future[None]":
    future: Future[None] = Future()
    future.set_exception(error)
    return future


def _known(folder: Path) -> dict[str, str]:
    try:
        return {key: str(own) for key, own in read_json(folder / IDS, RunError, "").items()}
    except RunError:
        return {}


def _remember(folder: Path, name: str, own: str) -> None:
    with _WRITING:
        write_bytes(json.dumps({**_known(folder), name: own}).encode(), folder / IDS)


# --- what each of them wants, beside what they have in common: (the tracker, what it calls the run) -------------------


def _wandb(run: Described, before: str) -> tuple[Any, str]:
    from accelerate.tracking import WandBTracker

    own = before or secrets.token_hex(4)
    quiet = {"silent": True, "console": "off"}
    return WandBTracker(run.project, name=run.name, id=own, resume="allow", dir=str(run.folder), settings=quiet), own


def _trackio(run: Described, before: str) -> tuple[Any, str]:
    from accelerate.tracking import TrackioTracker

    own = before or f"{run.name}-{secrets.token_hex(4)}"
    return TrackioTracker(run.project, name=own, resume="allow"), own


def _mlflow(run: Described, before: str) -> tuple[Any, str]:
    from accelerate.tracking import MLflowTracker

    return MLflowTracker(run.project, run_name=run.name, run_id=before or None), before


def _wandb_picture(tracker: Any, name: str, path: Path, step: int) -> None:
    tracker.log_images({name: [str(path)]}, step=step)


def _trackio_picture(tracker: Any, name: str, path: Path, step: int) -> None:
    import trackio

    tracker.log({name: trackio.Image(str(path))}, step=step)


def _mlflow_picture(tracker: Any, name: str, path: Path, step: int) -> None:
    tracker.log_artifact(str(path), artifact_path=name)


def _logged_text(tracker: Any, name: str, text: str, step: int) -> None:
    tracker.log({name: text}, step=step)


def _mlflow_text(tracker: Any, name: str, text: str, step: int) -> None:
    import mlflow

    mlflow.set_tag(name, text)


_OPENERS: Mapping[str, Callable[[Described, str], tuple[Any, str]]] = {
    "wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow,
}  # fmt: skip
_PICTURES: Mapping[str, Callable[[Any, str, Path, int], None]] = {
    "wandb": _wandb_picture, "trackio": _trackio_picture, "mlflow": _mlflow_picture,
}  # fmt: skip
_TEXTS: Mapping[str, Callable[[Any, str, str, int], None]] = {
    "wandb": _logged_text, "trackio": _logged_text, "mlflow": _mlflow_text,
}  # fmt: skip
