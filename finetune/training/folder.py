"""A run's folder: opened or refused, room reserved; what the run is, what happens, and how it ended written down."""

import json
import os
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

from finetune import __version__, reading, recipe, references
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.adapters.attach import Trainable
from finetune.errors import FinetuneError, Interrupted, NotLearnt, RunError
from finetune.events import Event, Finished, Saved, Warned, unheard
from finetune.families.base import Family
from finetune.files import layouts
from finetune.machine import has_gpu
from finetune.pages.report import Wording
from finetune.pages.writer import ReportWriter
from finetune.planning import footprint
from finetune.planning.candidates import candidate_bytes, candidate_count
from finetune.planning.plan import Plan
from finetune.reporting.history import LOG, RECIPE_FILE, RECORD
from finetune.reporting.jsonl import JsonLines
from finetune.reporting.owner import LOCK, Ownership, owned, owner_of
from finetune.reporting.status import REPORT, resuming
from finetune.reporting.trackers import FOLDER, IDS, Described, Trackers
from finetune.saving import is_leftover, remove_leftovers
from finetune.training import checkpoint
from finetune.training.loop import State
from finetune.training.resume import compared, no_run, record, settings

_TRACES = {
    LOG, LOCK, RECORD, RECIPE_FILE, FOLDER, IDS, "wandb", "samples", REPORT, references.CHECKPOINTS,
    references.CANDIDATES,
}  # fmt: skip
"""what a run leaves that ended before it saved a step"""
_OUTCOMES: dict[type[FinetuneError], str] = {Interrupted: "interrupted", NotLearnt: "not learnt"}
"""what run.json says of a run that ended in an error, of other errors "failed"; else it says running or done"""
_SURPLUS_BYTES = 64 << 20


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
        self._begun = False
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
        _reserve(self.path, _bytes_needed(plan) - _bytes_there(self.path))
        if not resume:
            _remove_traces(self.path)

    def begin(self, plan: Plan) -> None:
        """Write recipe.toml, which repeats the run, and run.json: versions, fingerprints, hardware."""
        weights.write_bytes(recipe.dumps(plan.recipe).encode(), self.path / RECIPE_FILE)
        self._write_record(plan, "running")
        self._begun = True
        self._trackers.begin(plan.recipe.report.to, _described(plan, self.path))
        self._page = ReportWriter(self.path, self._worded)  # only now: a run that is refused leaves no page

    def end(self, plan: Plan) -> None:
        """It did what it was asked for: run.json says so."""
        self._write_record(plan, "done")
        self._begun = False

    def record(self, event: Event) -> None:
        """Into events.jsonl and the curves."""
        if self._log is None:  # only now: a run that is refused leaves no file
            self._log = JsonLines(self.path / LOG)
        self._log(event)
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
                    yield event
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

    def _last_page(self) -> None:
        """Of a run that ended before its result."""
        if self._begun:  # nobody knows of that end
            self._note("failed", "an error of finetune itself; it was shown where the run was started")
        if self._page and not self._page.finished and (warned := self._page.end()):
            self.record(warned)

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

    def _unwritten(self, error: OSError) -> RunError:
        """What a run, whatever it was at, could not write or read."""
        what = f"{error.filename or self.path}: {error.strerror or error}"
        return RunError(f"the disk failed the run in {self.path}: {what}", "free some space, then resume",
                        resuming(self.path))  # fmt: skip

    def _note(self, outcome: str, reason: str, hint: str = "") -> None:
        """On a disk that takes nothing more the run is one that was cut off."""
        begun, self._begun = self._begun, False
        if begun:  # what is refused before changes nothing
            told = {"outcome": outcome, "reason": reason, "hint": hint, "picked_step": self.picked}
            content = {**record(self.path), **told}
            with suppress(OSError):
                weights.write_bytes(json.dumps(content, indent=1).encode(), self.path / RECORD)


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
        return None


def _described(plan: Plan, out: Path) -> Described:
    """No path of this machine is in it."""
    public = recipe.without_paths(plan.recipe, plan.data.root.name, shipped.public_name(plan.recipe.base))
    values = settings(public).items()
    config = {key: value if isinstance(value, str | int | float | None) else json.dumps(value) for key, value in values}
    name, images = plan.recipe.name or out.resolve().name, plan.samples / plan.steps
    return Described(out, plan.recipe.report.project, name, config, recipe.dumps(public), images)


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
    return identity | compared(plan.recipe)


def _refuse(out: Path, resume: bool) -> None:
    holds_run = reading.exists(out / RECORD) or reading.exists(out / references.CHECKPOINTS)
    if resume and not holds_run:
        raise no_run(out)
    if reading.exists(out) and not reading.is_dir(out):
        raise RunError(f"{out} is a file, not a folder", "choose another `out`")
    if not resume and reading.exists(out) and not _is_free(out):
        what = "holds a run already" if holds_run else "is not empty"
        hint = f"`resume` to go on with it, or another `out`, such as {out}-2" if holds_run else "choose another `out`"
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


def _bytes_needed(plan: Plan) -> int:
    """Checkpoints, one more while it is written, the candidates, and the exported files."""
    rows = footprint.component_footprints(plan)
    trained = sum(4 * c.trainable for c in rows)
    state = trained + sum(c.optimizer_bytes + c.mean_bytes for c in rows)
    whole = not isinstance(plan.recipe.adapter, recipe.LowRank) or "merged" in plan.recipe.export.layouts
    pipeline = 2 * sum(4 * c.parameters for c in rows) if whole else 0
    candidates = candidate_count(plan) * candidate_bytes(plan, rows)
    return state * (plan.recipe.train.keep_last + 1) + 3 * trained + candidates + pipeline + _SURPLUS_BYTES


def _reserve(out: Path, needed: int) -> None:
    """Ask the disk for that much, and give it back. Raises OSError when it says no."""
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(28, f"{needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free")
    probe = out / f".room.{os.getpid()}.part"
    try:
        with probe.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            else:
                file.write(b"room")
    finally:
        with suppress(OSError):
            probe.unlink()


def shapes(trainable: Trainable) -> str:
    """What is trained, in short: the same for the same names and shapes."""
    text = "\n".join(f"{c}.{n} {tuple(p.shape)}" for c, ps in trainable.items() for n, p in ps.items())
    return f"{sum(map(len, trainable.values()))} tensors, {weights.digest(text)}"
