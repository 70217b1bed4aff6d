"""Every target struck at every point, each in a fork of one warm process: `python -c ... LD_PRELOAD=` the shim."""

import gc
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch

from support.fault_mutations import MUTATIONS
from support.fault_targets import ABSENT, TARGETS, Target
from support.faults import NONE, Point, Shim, points
from support.hostile import Attempt, forked

SEED, MOST = 16, 100


class Tried(NamedTuple):
    """A target that was struck at a point, and what is wrong with what came of it; empty: nothing."""

    target: str
    fault: str
    operation: str
    wrong: str


def main(place: str, targets: Sequence[str] = ()) -> None:
    """Prints a line of JSON for each point of all targets, or of these; then for each mutation the first point at which
    it lost something."""
    torch.set_num_threads(1)
    shim = Shim()
    gc.collect()
    gc.freeze()
    for target in targets or TARGETS:
        for tried in Bench(Path(place), target, shim).all(TARGETS[target].most):
            say("", tried)
    for name, mutation in MUTATIONS.items() if not targets else ():
        bench = Bench(Path(place), mutation.target, shim)
        with mutation.applied():
            say(name, next((tried for tried in bench.all(MOST) if tried.wrong), None))


def say(mutation: str, tried: Tried | None) -> None:
    sys.stdout.write(json.dumps([mutation, tried]) + "\n")
    sys.stdout.flush()


class Bench:
    """One target: its states before and after, and the operations between them."""

    def __init__(self, place: Path, name: str, shim: Shim) -> None:
        self.name, self.shim, self.target = name, shim, TARGETS[name]
        self.template, self.folder = place / "template", place / "place"
        for folder in (self.template, self.folder):
            shutil.rmtree(folder, ignore_errors=True)
        self.template.mkdir(parents=True)
        self.target.begun(self.template)

    def all(self, most: int) -> Iterator[Tried]:
        self._fresh()
        self.before = self._found()
        done = self._struck(Point(NONE, 0))
        assert done.code == 0, f"{self.name}: {done.text}"
        self.after, self.left = self._found(), names(self.folder)
        assert self.after != self.before, self.name
        operations = [*(self.folder.parent / "operations").read_text().splitlines(), "done"]
        for point in points(len(operations) - 1, most, SEED):
            self._fresh()
            ended = self._struck(point)
            wrong = self._wrong(point, ended)
            yield Tried(self.name, point.fault.name, f"{point.number}: {operations[point.number - 1]}", wrong)

    def _fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder)

    def _found(self) -> str:
        return self.target.read(self.folder)

    def _struck(self, point: Point) -> Attempt:
        def work() -> None:
            try:
                with self.shim.armed(self.folder, point):
                    self.target.act(self.folder)
            finally:
                told = "\n".join(one.replace(str(self.folder), "") for one in self.shim.operations)
                (self.folder.parent / "operations").write_text(told)

        return forked(work, self.folder)

    def _wrong(self, point: Point, ended: Attempt) -> str:
        """The first thing that is wrong; at last the same work, done once more on what is left."""
        if wrong := how_it_ended(point, ended):
            return wrong
        try:
            found = self._found()
            if not self._is_whole(found, done=ended.code == 0):
                return f"a reader finds {found[:300]!r}, neither what was there nor what was written"
            if found == self.after and self.target.once:
                return ""
            with self.shim.armed(self.folder, Point(NONE, 0)):
                failed = once_more(self.target, self.folder)
            if failed:
                return f"the same again ends with {failed}"
            if (found := self._found()) != self.after:
                return f"done again, a reader finds {found[:300]!r}"
        except Exception as e:  # noqa: BLE001  (a reader that fails is what is looked for)
            return f"a reader fails: {type(e).__name__}: {e}"
        left = [name for name in names(self.folder) if name not in self.left and not is_aside(name)]
        return f"left behind: {left}" if left else ""

    def _is_whole(self, found: str, done: bool) -> bool:
        if done:
            return found == self.after
        return self.target.steps(found, self.before, self.after) or (self.target.new and found == ABSENT)


def how_it_ended(point: Point, ended: Attempt) -> str:
    """Killed where it was to be killed; else done in spite of it, or an error in words."""
    if ended.traceback:
        return f"a traceback: {ended.err[-600:]}"
    if point.fault.kills:
        return "" if ended.code == -9 else f"ended with {ended.code} where it was to be killed"
    if ended.code == 0 or (ended.code == 2 and "error:" in ended.err):
        return ""
    return f"ended with {ended.code}: {ended.text[-300:]}"


def once_more(target: Target, folder: Path) -> str:
    """In this process, which costs less than a fork. Returns how it failed; empty: it did not."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, chdir(folder):
        try:
            target.act(folder)
        except SystemExit as e:
            return f"{e.code}: {(out.getvalue() + err.getvalue())[-400:]}" if e.code else ""
    return ""


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def is_aside(name: str) -> bool:
    """Hidden, or in a hidden folder: what a killed writer leaves, and no reader takes for anything; or of the cache or
    TensorBoard, whose every call has files of its own; or a step that could not be saved in its place."""
    own = "/events.out." in name or name.endswith((".shard", ".open", ".index"))
    return any(part.startswith(".") for part in name.split("/")) or own or "-rescued-" in name
