"""Is this machine fit to train? Versions against tested ranges, and each part used once for real."""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from packaging.requirements import Requirement
from torch import nn

from finetune import optimizers, reading, recipe
from finetune.encoding.store import default_root
from finetune.errors import Action, RunError, action
from finetune.machine import current_device, has_gpu

LITTLE_DISK_BYTES, LITTLE_MEMORY_BYTES = 2 << 30, 4 << 30


class Finding(NamedTuple):
    what: str
    ok: bool
    detail: str
    hint: str = ""
    action: Action | None = None


def examine_machine() -> Iterator[Finding]:
    """One finding after the other, as they are made."""
    yield from versions()
    for name in optimizers.OPTIMIZERS:
        yield optimizer_steps(name)
    yield from gpus()
    yield room(default_root())
    yield memory()


def versions() -> Iterator[Finding]:
    """Each dependency's version against the range this version was tested with."""
    for text in requires("finetune-diffusion") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, False, "not installed", _install(requirement))
            continue
        fits = requirement.specifier.contains(re.sub(r"\+.*", "", found), prereleases=True)
        hint = "" if fits else _install(requirement)
        yield Finding(requirement.name, fits, f"{found}, tested {requirement.specifier}", hint)


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"


def optimizer_steps(name: str) -> Finding:
    """One real step on the device that would train; the large parameter takes the 8-bit path."""
    device = current_device()
    parameter = nn.Parameter(torch.ones(64, 128, device=device))
    config = recipe.optimizer(name, learning_rate=0.1)
    try:
        optimizer = optimizers.build(config, [("unet", [parameter], 0.1)])
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    except RunError as e:
        return Finding(f"optimizer {name}", True, "needs bitsandbytes", e.hint)
    except RuntimeError as e:
        return Finding(f"optimizer {name}", False, f"its step fails: {e}", "set optimizer.name = adamw")
    moved = bool((parameter < 1).all())
    did = "works" if moved else "does not work: its step changes nothing"
    return Finding(f"optimizer {name}", moved, f"one step on {device.type} {did}", "set another optimizer.name")


def gpus() -> Iterator[Finding]:
    """A kernel on each GPU, in float32 and bfloat16."""
    if not has_gpu():
        yield Finding(
            "GPU", True, "none: training runs on the CPU, which is fine for the pocket base and slow for larger ones"
        )
    for index in range(torch.cuda.device_count()):
        name, total = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)
        try:
            ones = torch.ones(256, 256, device=f"cuda:{index}")
            right = bool((ones @ ones == 256).all())
            half = bool((ones.bfloat16() @ ones.bfloat16() == 256).all())
        except RuntimeError as e:
            problem = f"{name}: a kernel fails: {str(e).splitlines()[0]}"
            yield Finding(f"GPU {index}", False, problem, "install a torch build for this GPU")
            continue
        free = f"{total[0] / 2**30:.1f} of {total[1] / 2**30:.1f} GiB free"
        detail = f"{name}, {free}, bf16 {'works' if half else 'does not work'}"
        hint = "it computes wrong numbers: install another driver, or use another GPU"
        yield Finding(f"GPU {index}", right, detail, hint)


def room(folder: Path) -> Finding:
    """Free disk where the cache is, and here."""
    there = next(p for p in (folder, *folder.parents) if reading.exists(p))
    free = min(shutil.disk_usage(there).free, shutil.disk_usage(".").free)
    return Finding(
        "disk",
        free > LITTLE_DISK_BYTES,
        f"{free / 2**30:.1f} GiB free",
        f"clear the cache {folder}",
        action("cache clear"),
    )


def device_memory() -> tuple[str, int]:
    """The device that would train, and its free memory in bytes."""
    if has_gpu():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    return "this computer (CPU)", host_memory()


def host_memory() -> int:
    """Bytes of this computer's memory that are free."""
    return int(psutil.virtual_memory().available)


def memory() -> Finding:
    free = host_memory()
    hint = "close other programs, or set train.gradient_checkpointing = true"
    return Finding("memory", free > LITTLE_MEMORY_BYTES, f"{free / 2**30:.1f} GiB available", hint)
