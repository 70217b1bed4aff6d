"""A run's folder: opened or refused, room reserved; what the run is, what happens, and how it ended written down."""

import json
import platform
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import ClassVar

import torch

from finetune import __version__, reading, recipe, references, writing
from finetune import tensors as weights
from finetune.adapters.attach import Trainable
from finetune.errors import FinetuneError, Interrupted, NotLearnt, PeerLost, RunError
from finetune.events import Event, Finished, Saved, Warned, unheard
from finetune.families.base import Family
from finetune.files import layouts
from finetune.machine import has_gpu
from finetune.pages import training_data
from finetune.pages.report import Wording
from finetune.pages.writer import ReportWriter
from finetune.planning.counts import kept_footprints
from finetune.planning.names import exported_name
from finetune.planning.plan import Plan
from finetune.planning.public import public_recipe
from finetune.planning.room import disk_bytes
from finetune.reporting.history import LOG, RECIPE_FILE, RECORD
from finetune.reporting.jsonl import JsonLines
from finetune.reporting.owner import LOCK, Ownership, owned, owner_of
from finetune.reporting.status import REPORT, resuming
from finetune.reporting.trackers import FOLDER, IDS, Described, Trackers
from finetune.saving import is_leftover, remove_leftovers
from finetune.training import checkpoint
from finetune.training.loop import State
from finetune.training.resume import A_STEP, compared, holds_run, no_run, record, settings

TRYOUT = ".tryout.part"
"""while it is tried before the first step what the end will need; as long as "adapter", where that will be"""
_TRACES = {
    LOG, LOCK, RECORD, RECIPE_FILE, FOLDER, IDS, "wandb", "samples", REPORT, references.CHECKPOINTS,
    references.CANDIDATES, TRYOUT,
}  # fmt: skip
"""what a run leaves that ended before it saved a step"""
_OUTCOMES: dict[type[FinetuneError], str] = {
    Interrupted: "interrupted",
    PeerLost: "interrupted",
    NotLearnt: "not learnt",
}
"""what run.json says of a run that ended in an error, of other errors "failed"; else it says running or done"""


class RunFolder:
    """Where a run writes: recipe.toml and run.json, events.jsonl and TensorBoard's curves, its page, checkpoints."""

    writes: ClassVar[bool] = True

    def __init__(self, path: Path, worded: Wording = str) -> None:
        self.path = path
        self._worded = worded
        """how its page writes what its reader may do next"""
        self.identity: dict[str, str] = {}
        """what must be the same for the run to be resumed, by `identify`"""
        self.saved: int | None = None
        """the step of the checkpoint that was written or read last"""
        self.file: Mapping[str, object] = {}
        """what the recipe file says, without overrides: by it edits are told from overrides when the run is resumed"""
        self.picked: int | None = None
        """the step whose adapter is exported, by evaluate.pick = "best"; None: the last one"""
        self._begun: Plan | None = None
        """what is going on; None: it is not begun, or how it ended is written down"""
        self._log: JsonLines | None = None
        self._trackers = Trackers()
        self._ownership = Ownership(path)
        self._warning = ""
        """about the disk it is on"""
        self._page: ReportWriter | None = None

    def open(self, plan: Plan, resume: bool) -> None:
        """Refuse a folder that holds a run (or, to resume, that holds none), or a disk without room.

        What a run leaves that ended before it saved a step is in nobody's way: all but its log is removed.

        From here to the end of `recorded` the folder is this process's alone.

        Raises:
            RunError: says which, and what to do; also when a living run owns the folder.
        """
        try:
            str(reading.real_path(self.path)).encode()
        except UnicodeEncodeError as e:
            raise RunError(f"{self.path}: no adapter can be read from a path that is no UTF-8", "another `out`") from e
        self._refuse_owned()
        try:
            _refuse(self.path, resume)
        except RunError:
            self._refuse_owned()  # what is in the way may be of a run that began just now
            raise
        made = not reading.exists(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._warning = self._ownership.take()
            with self._kept_when_opened():
                _refuse(self.path, resume)  # another run may have come and gone since
                self._make_room(plan, resume)
        except OSError as e:
            if made:
                with suppress(OSError):  # it was not made, or something is left in it
                    self.path.rmdir()
            problem = f"cannot write into {self.path}: {e.strerror}"
            raise RunError(problem, "choose another `out`, or free some space") from e

    def _refuse_owned(self) -> None:
        if owner := owner_of(self.path):
            raise owned(self.path, owner)

    @contextmanager
    def _kept_when_opened(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._ownership.release()
            raise

    def _make_room(self, plan: Plan, resume: bool) -> None:
        remove_leftovers(self.path)
        needed = disk_bytes(plan, kept_footprints(plan))
        writing.reserve(self.path, max(0, needed - _bytes_there(self.path)))
        if not resume:
            _remove_traces(self.path)

    def begin(self, plan: Plan) -> None:
        """Write recipe.toml, which repeats the run, and run.json: versions, fingerprints, hardware."""
        self.describe(plan, "running")
        self._begun = plan
        self._trackers.begin(plan.recipe.report.to, _described(plan, self.path))
        training_data.remember(plan.recipe.data, plan.data)
        self._page = ReportWriter(self.path, self._worded)  # only now: a run that is refused leaves no page

    def describe(self, plan: Plan, outcome: str) -> None:
        """What a run is resumed by. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(recipe.dumps(plan.recipe).encode(), self.path / RECIPE_FILE)
        self._write_record(plan, outcome)

    def end(self, plan: Plan) -> None:
        """It did what it was asked for: run.json says so."""
        self._write_record(plan, "done")
        self._begun = None

    def record(self, event: Event) -> None:
        """Into events.jsonl and the curves. Raises RunError: the folder cannot be written any more."""
        try:
            if self._log is None:  # only now: a run that is refused leaves no file
                self._log = JsonLines(self.path / LOG)
            self._log(event)
        except OSError as e:
            raise self._unwritten(e) from e
        self._trackers(event)

    def recorded(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """The same events, each written down before it is read; in run.json an error that ends them; the run's page."""
        try:
            with closing(events):
                for event in chain([Warned(self._warning)] if self._warning else [], events):
                    self.record(event)
                    if isinstance(event, Finished):
                        self._trackers.close()
                    yield from self._log_faults()
                    if self._page and (warned := self._page(event)):
                        self.record(warned)
                        yield warned
                    yield self._with_page(event)
        except GeneratorExit:
            self._note("interrupted", "left by its reader")
            raise
        except FinetuneError as e:
            self._note(_OUTCOMES.get(type(e), "failed"), str(e), e.hint)
            raise
        except OSError as e:
            error = self._unwritten(e)
            self._note("failed", str(error), error.hint)
            raise error from e
        finally:
            self._trackers.close()
            with suppress(OSError):  # a full disk takes no last words either
                self._log_faults()
            self._last_page()
            self._ownership.release()

    def _with_page(self, event: Event) -> Event:
        """The result names the run's page, where there is one by now."""
        page = self.path / REPORT
        return event._replace(page=page) if isinstance(event, Finished) and reading.is_file(page) else event

    def _last_page(self) -> None:
        """Of a run that ended before its result."""
        if self._begun:  # nobody knows of that end
            self._note("failed", "an error of finetune itself; it was shown where the run was started")
        if self._page and not self._page.finished and (warned := self._page.end()):
            with suppress(RunError):  # the folder is gone, and that was said
                self.record(warned)

    def _unwritten(self, error: OSError) -> RunError:
        said = f"{error.filename or self.path}: {error.strerror or error}"
        step = resuming(self.path) if self._begun else None
        return RunError(f"cannot go on: {said}", "free some space, or make it writable; then resume", step)

    def _log_faults(self) -> list[Warned]:
        """What went wrong with trackers, which is written down and told, and stops nothing."""
        found = [Warned(fault) for fault in self._trackers.faults()]
        for event in found:
            if self._log:
                self._log(event)
        return found

    def save(self, state: State, keep_last: int, told: Mapping[str, str]) -> Saved | None:
        """A checkpoint of the state, whose adapter says of itself what is told; None when it is written already.
        Raises OSError."""
        if self.saved == state.step:
            return None
        path = checkpoint.save_checkpoint(self.path / "checkpoints", state, self.identity, keep_last, told)
        self.saved = state.step
        if self._begun and not reading.is_file(self.path / RECIPE_FILE):  # somebody removed the folder
            self.describe(self._begun, "running")
        return Saved(state.step, path)

    def _write_record(self, plan: Plan, outcome: str) -> None:
        content = {
            "outcome": outcome,
            "reason": "",
            "hint": "",
            "picked_step": self.picked,
            "finetune": __version__,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "steps": plan.steps,
            "stride": plan.facts.stride,
            "identity": self.identity,
            "settings": settings(plan.recipe),
            "file": dict(self.file),
            "versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "peft", "accelerate")},
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if has_gpu() else platform.machine(),
            "threads": torch.get_num_threads(),
        }
        weights.write_bytes(json.dumps(content, indent=1).encode(), self.path / RECORD)

    def _note(self, outcome: str, reason: str, hint: str = "") -> None:
        if self._begun is None:  # what is refused before changes nothing
            return
        with suppress(OSError):  # the folder is gone, and that is the error
            told = {"outcome": outcome, "reason": reason, "hint": hint, "picked_step": self.picked}
            content = {**record(self.path), **told}
            weights.write_bytes(json.dumps(content, indent=1).encode(), self.path / RECORD)
        self._begun = None


class Unwritten(RunFolder):
    """The same folder to those who only read it: ranks beside the first."""

    writes = False

    def open(self, plan: Plan, resume: bool) -> None:
        if resume:
            _refuse(self.path, resume)

    def begin(self, plan: Plan) -> None: ...

    def end(self, plan: Plan) -> None: ...

    def recorded(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """None: one rank speaks for all."""
        unheard(events)
        yield from ()

    def save(self, state: State, keep_last: int, told: Mapping[str, str]) -> None:
        if state.spread and self.saved != state.step:  # the first rank waits for this one's part
            checkpoint.collect(state, keep=False)
            self.saved = state.step


def _described(plan: Plan, out: Path) -> Described:
    """No path of this machine is in it."""
    public = public_recipe(plan.recipe, plan.data)
    values = settings(public).items()
    config = {key: value if isinstance(value, str | int | float | None) else json.dumps(value) for key, value in values}
    name, images = exported_name(plan.recipe.name, out), plan.samples / plan.steps
    return Described(out, public.report.project, name, config, recipe.dumps(public), images)


def run_identity(plan: Plan, family: Family) -> dict[str, str]:
    """What must be the same for a run to be resumed, each in words that fit an error message."""
    parts = [family.fingerprint(part) for part in ("vae", *family.encoders, family.denoiser_name)]
    identity = {"base": weights.digest("".join(parts)), "dataset": plan.data.fingerprint[:16]}
    path = family.process.sample_timesteps(torch.arange(1000, dtype=torch.float64) / 1000, cells=4096)
    alpha, sigma = family.process.path.scales(path)
    identity["noise path"] = weights.fingerprint({"alpha": alpha, "sigma": sigma})[:16]
    if start := plan.recipe.adapter.init_from:
        identity["start"] = layouts.read_adapter(start).digest()
    if plan.prior:
        identity["prior images"] = weights.digest("".join(p.example.digest for p in plan.prior.placed))
    return identity | compared(plan.recipe) | {A_STEP: str(plan.train.schedule.samples_per_step)}


def _refuse(out: Path, resume: bool) -> None:
    held = holds_run(out)
    if resume and not held:
        raise no_run(out)
    if reading.exists(out) and not reading.is_dir(out):
        raise RunError(f"{out} is a file, not a folder", "choose another `out`")
    if not resume and reading.exists(out) and not _is_free(out):
        what = "holds a run already" if held else "is not empty"
        hint = f"`resume` to go on with it, or another `out`, such as {out}-2" if held else "choose another `out`"
        raise RunError(f"{out} {what}", hint)


def _is_free(out: Path) -> bool:
    """Does it hold nothing, or no more than the traces of a run that ended before it saved a step?"""
    names = {path.name for path in out.iterdir() if not is_leftover(path.name)}
    ended = record(out).get("outcome", "running") not in ("running", "done")
    begun = LOG in names and names <= {LOG, LOCK, RECIPE_FILE}  # and killed before it wrote down that it had
    return names <= {LOG, LOCK} or begun or (ended and names <= _TRACES and not references.steps(out))


def _remove_traces(out: Path) -> None:
    for path in out.iterdir():
        if reading.is_dir(path):
            shutil.rmtree(path)
        elif path.name not in (LOG, LOCK):
            path.unlink()


def _bytes_there(out: Path) -> int:
    """Of candidates, which a run that goes on need not find room for again."""
    return sum(file.stat().st_size for file in (out / references.CANDIDATES).glob("step-*/*.safetensors"))


def shapes(trainable: Trainable) -> str:
    """What is trained, in short: the same for the same names and shapes."""
    text = "\n".join(f"{c}.{n} {tuple(p.shape)}" for c, ps in trainable.items() for n, p in ps.items())
    return f"{sum(map(len, trainable.values()))} tensors, {weights.digest(text)}"
