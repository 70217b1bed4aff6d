"""A checkpoint is a directory that is either whole or absent: safetensors and JSON, with a manifest of digests.

An adapter lies in it as a PEFT directory, as export writes it, alpha inside: step-000500/COMPONENT; with train.ema also
the running mean, which is what a run exports: step-000500/ema/COMPONENT. Full fine-tuning has trainable.safetensors.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune import reading
from finetune import tensors as weights
from finetune.errors import RunError
from finetune.files.peft import PEFT_CONFIG, PEFT_WEIGHTS, parameter_key
from finetune.files.read import EMA_FOLDER
from finetune.optimizers import state as optimizer_state
from finetune.ranks import as_spread, whole
from finetune.references import fault, step_folders, step_of
from finetune.saving import flush_names, remove_leftovers, whole_or_not
from finetune.training.loop import State
from finetune.unchanged import Stamps, files_in

FORMAT = 3
_READ = (2, FORMAT)
"""2: an adapter, too, was in trainable.safetensors"""
_FILES = ("optimizer.safetensors", "state.json")
_WHOLE, _WHOLE_MEAN = "trainable.safetensors", "mean.safetensors"
"""full fine-tuning; the mean with train.ema"""


class Found(NamedTuple):
    path: Path
    step: int
    identity: dict[str, str]
    """what the run was, to be the same when it resumes"""
    stamps: Stamps
    """its files as they were before they were held against the manifest"""


class Collected(NamedTuple):
    """What is saved of a state."""

    values: list[Tensor]
    """of what is trained, in the order of its parameters"""
    mean: list[Tensor] | None
    tensors: dict[str, Tensor]
    """of the optimizer"""
    tree: Any


def collect(state: State, keep: bool = True) -> Collected:
    """All of a state; where weights are spread over ranks, all of them must ask. keep: without, this rank only takes
    part, and gets empty tensors.

    Raises:
        RunError: the optimizer keeps what a checkpoint cannot hold.
    """

    def all_of(some: Sequence[Tensor]) -> list[Tensor]:
        if not state.spread:
            return [one.detach() for one in some]
        found = (whole(one.detach()) for one in some)
        return [one.to("cpu", copy=True) if keep else one.new_empty(0) for one in found]

    tensors, tree = optimizer_state.pack(state.optimizer, keep)
    return Collected(all_of(state.parameters), None if state.ema is None else all_of(state.ema), tensors, tree)


def save_checkpoint(
    folder: Path,
    state: State,
    identity: Mapping[str, str],
    keep_last: int,
    told: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write `folder/step-000500`, whole or not at all, and drop the oldest beyond keep_last. told: what its adapter
    says of itself.

    Raises:
        RunError: the optimizer keeps what a checkpoint cannot hold.
    """
    found = collect(state)
    target = folder / f"step-{state.step:06d}"
    with whole_or_not(target) as beside:
        _write(state, beside, found.values, ema=False, told=told)
        if found.mean is not None:
            _write(state, beside, found.mean, ema=True, told=told)
        weights.write_tensors(found.tensors, beside / "optimizer.safetensors", {})
        scaler = dict(state.scaler.state_dict()) if state.scaler else {}
        content = {"format": FORMAT, "step": state.step, "bad_steps": state.bad_steps, "identity": dict(identity),
                   "optimizer": found.tree, "scaler": scaler}  # fmt: skip
        weights.write_bytes(json.dumps(content, indent=1).encode(), beside / "state.json")
        written = sorted(path for path in beside.rglob("*") if reading.is_file(path))
        manifest = {path.relative_to(beside).as_posix(): weights.file_sha256(path) for path in written}
        weights.write_bytes(json.dumps(manifest, indent=1).encode(), beside / "manifest.json")
    flush_names(folder)
    for old in [path for path in step_folders(folder) if step_of(path) <= state.step][:-keep_last]:
        shutil.rmtree(old)
    remove_leftovers(folder)
    return target


def newest(folder: Path) -> tuple[Found | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that is damaged."""
    damage: list[str] = []
    for path in reversed(step_folders(folder)):
        stamps = Stamps.of(files_in(path))
        wrong = fault(path, _FILES)
        if wrong:
            damage.append(f"{path.name}: {wrong}")
            continue
        try:
            content = _content(path)
        except RunError as e:
            damage.append(f"{path.name}: {e.problem}")
            continue
        return Found(path, content["step"], content["identity"], stamps), damage
    return None, damage


def load_checkpoint(found: Found, state: State) -> None:
    """Put a checkpoint back into the state of a run that was built anew.

    Raises:
        RunError: it holds other parameters, was written in another format, or was changed since it was found.
    """
    content = _content(found.path)
    if content["format"] not in _READ:
        raise RunError(
            f"{found.path} was written by another version of finetune (checkpoint format {content['format']}, "
            f"{FORMAT} here)",
            "end this run with the version that began it, or start again with another `out`",
        )
    saved = _read(state, found.path, ema=False)
    ours = _named(state)
    if saved.keys() != ours.keys() or any(saved[k].shape != ours[k].shape for k in ours):
        raise RunError(
            f"{found.path} holds other parameters than this recipe trains", "resume with the run's own recipe"
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(as_spread(saved[name], parameter))
    if state.ema is not None:
        means = _read(state, found.path, ema=True)
        for name, mean in zip(ours, state.ema, strict=True):
            mean.copy_(as_spread(means[name], mean))
    tensors = weights.load_tensors(found.path / "optimizer.safetensors")
    try:
        optimizer_state.unpack(state.optimizer, tensors, content["optimizer"])
        if state.scaler and content["scaler"]:
            state.scaler.load_state_dict(content["scaler"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise RunError(
            f"{found.path} holds a state that this optimizer does not take", "start again with another `out`"
        ) from e
    found.stamps.check(RunError)
    state.step, state.bad_steps = content["step"], content["bad_steps"]


def _content(folder: Path) -> dict[str, Any]:
    """state.json. Raises RunError: it cannot be read, or is none of ours."""
    file = folder / "state.json"
    content = reading.read_json(file, RunError, "", finite=False)
    kinds = {"format": int, "step": int, "bad_steps": int, "identity": dict, "optimizer": dict, "scaler": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    if wrong or content["step"] < 0 or not all(isinstance(said, str) for said in content["identity"].values()):
        said = f"{file} is no state of a run{': ' * bool(wrong)}{', '.join(wrong)}"
        raise RunError(said, "go on from an earlier checkpoint: remove this one")
    return content


def _named(state: State) -> dict[str, Tensor]:
    return {f"{c}.{n}": p for c, parameters in state.trainable.items() for n, p in parameters.items()}


def _write(state: State, folder: Path, values: Sequence[Tensor], ema: bool, told: Mapping[str, str]) -> None:
    named = dict(zip(_named(state), values, strict=True))
    if not state.configs:
        weights.write_tensors(named, folder / (_WHOLE_MEAN if ema else _WHOLE), {})
    for component, config in state.configs.items():
        inside = folder / EMA_FOLDER / component if ema else folder / component
        inside.mkdir(parents=True)
        own = {parameter_key(n): named[f"{component}.{n}"] for n in state.trainable[component]}
        weights.write_tensors(own, inside / PEFT_WEIGHTS, {"format": "pt", **told})
        weights.write_bytes(json.dumps(config, indent=2).encode(), inside / PEFT_CONFIG)


def _read(state: State, folder: Path, ema: bool) -> dict[str, Tensor]:
    """The trained tensors of a checkpoint, as `_named`; what it has of others under their own keys."""
    whole = folder / (_WHOLE_MEAN if ema else _WHOLE)
    if reading.is_file(whole):
        return weights.load_tensors(whole)
    found: dict[str, Tensor] = {}
    for file in sorted((folder / EMA_FOLDER if ema else folder).glob(f"*/{PEFT_WEIGHTS}")):
        component = file.parent.name
        names = {parameter_key(n): n for n in state.trainable.get(component, {})} if state.configs else {}
        found |= {f"{component}.{names.get(key, key)}": tensor for key, tensor in weights.load_tensors(file).items()}
    return found
