"""A run's folder: opened or refused, room reserved, what the run is and how it ended written down."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from finetune import __version__, recipe
from finetune import tensors as weights
from finetune.adapters.attach import Trainable
from finetune.errors import FinetuneError, RunError
from finetune.families.base import Family
from finetune.files import layouts
from finetune.machine import has_gpu
from finetune.planning import plan as planning
from finetune.planning.plan import Plan

MAY_CHANGE = (
    "name", "train.steps", "train.epochs", "train.checkpoint_every", "train.keep_last", "train.patience",
    "train.compile", "validation.every",
)  # fmt: skip
"""recipe keys a resumed run may change, beside sample and export"""
_NOT_COMPARED = ("sample.", "export.", "data.path", "data.cache", "base", "prior.path", "adapter.init_from")
"""free to change, or compared by content"""
_SURPLUS_BYTES = 64 << 20


def open_folder(plan: Plan, out: Path, resume: bool, main: bool) -> None:
    """Refuse a folder that holds a run (or, to resume, that holds none), or a disk without room.

    The log alone is what a run leaves that ended before its first step: such a folder counts as empty.

    Raises:
        RunError: says which, and what to do.
    """
    holds_run = (out / "run.json").exists() or (out / "checkpoints").exists()
    if resume and not holds_run:
        raise RunError(f"{out} holds no run to resume", "leave out --resume, or check the path")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file, not a folder", "another --out")
    if not resume and out.exists() and any(path.name != "events.jsonl" for path in out.iterdir()) and main:
        what = "holds a run already" if holds_run else "is not empty"
        hint = f"--resume to go on with it, or another --out, such as {out}-2" if holds_run else "another --out"
        raise RunError(f"{out} {what}", hint)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if main:
            _reserve(out, _bytes_needed(plan))
    except OSError as e:
        raise RunError(f"cannot write into {out}: {e.strerror}", "another --out, or free some space") from e


def identify(plan: Plan, family: Family) -> dict[str, str]:
    """What must be the same for a run to be resumed, each in words that fit an error message."""
    parts = [family.fingerprint(part) for part in ("vae", *family.encoders, family.denoiser_name)]
    identity = {"base": weights.digest("".join(parts)), "dataset": plan.data.fingerprint[:16]}
    path = family.process.drawn(torch.arange(1000, dtype=torch.float64) / 1000, cells=4096)
    alpha, sigma = family.process.path.scales(path)
    identity["noise path"] = weights.fingerprint({"alpha": alpha, "sigma": sigma})[:16]
    if start := plan.recipe.adapter.init_from:
        identity["start"] = layouts.read(start).digest()
    if plan.prior:
        identity["prior images"] = weights.digest("".join(p.example.digest for p in plan.prior.placed))
    for key in recipe.keys():
        if key not in MAY_CHANGE and not key.startswith(_NOT_COMPARED):
            identity[key] = str(recipe.value(plan.recipe, key))
    return identity


def write_run(out: Path, plan: Plan, identity: dict[str, str], outcome: str) -> None:
    """recipe.toml, which repeats the run, and run.json: versions, fingerprints, hardware, outcome."""
    content = {
        "outcome": outcome,
        "finetune": __version__,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "steps": plan.steps,
        "identity": identity,
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "peft", "accelerate")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if has_gpu() else platform.machine(),
        "threads": torch.get_num_threads(),
    }
    weights.write_bytes(recipe.dumps(plan.recipe).encode(), out / "recipe.toml")
    weights.write_bytes(json.dumps(content, indent=1).encode(), out / "run.json")


@contextmanager
def outcome_noted(out: Path) -> Iterator[None]:
    """An error inside is also written into run.json."""
    try:
        yield
    except FinetuneError as e:
        path = out / "run.json"
        content = json.loads(path.read_text())
        weights.write_bytes(json.dumps({**content, "outcome": str(e)}, indent=1).encode(), path)
        raise


def _bytes_needed(plan: Plan) -> int:
    """Checkpoints, one more while it is written, and the exported files."""
    rows = planning.components(plan)
    trained = sum(4 * c.trainable for c in rows)
    state = trained + sum(c.optimizer_bytes + c.mean_bytes for c in rows)
    whole = plan.recipe.adapter.method == "full" or "merged" in plan.recipe.export.layouts
    pipeline = 2 * sum(4 * c.parameters for c in rows) if whole else 0
    return state * (plan.recipe.train.keep_last + 1) + 3 * trained + pipeline + _SURPLUS_BYTES


def _reserve(out: Path, needed: int) -> None:
    """Ask the disk for that much, and give it back. Raises OSError when it says no."""
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(28, f"{needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free")
    probe = out / f".room.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            else:
                file.write(b"room")
    finally:
        probe.unlink(missing_ok=True)


def shapes(trainable: Trainable) -> str:
    """What is trained, in short: the same for the same names and shapes."""
    text = "\n".join(f"{c}.{n} {tuple(p.shape)}" for c, ps in trainable.items() for n, p in ps.items())
    return f"{sum(map(len, trainable.values()))} tensors, {weights.digest(text)}"
