"""What a user writes for an adapter, and where it lies: a path as it is, or RUN@500, a step of a run's folder."""

from pathlib import Path

from finetune import reading
from finetune.errors import BaseError
from finetune.reporting.history import RECORD

CANDIDATES, CHECKPOINTS = "candidates", "checkpoints"
EVALUATION = "evaluation"
"""folder in a run's folder: the pictures that were judged, and a sheet of them"""
LAST = "last"
_WHOLE = "trainable.safetensors"
"""what a checkpoint of full fine-tuning holds in place of an adapter, and of format 2 in place of alpha"""


def adapter_path(written: Path | str) -> Path:
    """A path that is there, as it is; of RUN@500 (RUN a run's folder, or RUN@last for its last step) the adapter of
    that step: the file that was written where it was sampled, else its checkpoint.

    Raises:
        BaseError: there is no such file, folder or step.
    """
    text = str(written)
    run, at, word = text.rpartition("@")
    if reading.exists(Path(text)) or not (at and reading.is_dir(Path(run))):
        return _file_in(Path(text))
    found = steps(Path(run))
    if not found:
        raise BaseError(
            f"{text}: {run} holds no step of a run", "name a run's folder, an adapter file or a PEFT folder"
        )
    step = max(found) if word == LAST else int(word) if word.isdecimal() else -1
    if step not in found:
        raise BaseError(f"{text}: the run has no such step", listed(Path(run)))
    place = found[step]
    if reading.is_dir(place):
        _check(text, place)
    return place


def steps(run: Path) -> dict[int, Path]:
    """step -> where its adapter is: the file of a sampled step, else the folder of its checkpoint; in order."""
    saved = {step_of(path): path for path in step_folders(run / CHECKPOINTS)}
    sampled = {step_of(path): _file_in(path) for path in step_folders(run / CANDIDATES)}
    return dict(sorted((saved | {step: path for step, path in sampled.items() if reading.is_file(path)}).items()))


def listed(run: Path) -> str:
    """Advice that names the steps that a run can be named at; empty where there are none."""
    found = steps(run)
    shown = ", ".join(map(str, found))
    return f"name one that it has, such as {run}@{max(found)}; its steps are {shown}" if found else ""


def run_of(path: Path) -> Path | None:
    """The folder of the run that a file or folder is, or lies in: RUN/checkpoints/step-000500/ema/unet and above."""
    return next((one for one in [path, *path.parents][:6] if reading.is_file(one / RECORD)), None)


def adapter_name(path: Path) -> str:
    """What to call what is made of an adapter: its file's or folder's name; of a checkpoint with its run's before."""
    name, run = reading.real_path(path).name.removesuffix(".safetensors"), run_of(reading.real_path(path))
    return f"{run.name}-{name}" if run and reading.real_path(path).parent == run / CHECKPOINTS else name


def step_folders(folder: Path) -> list[Path]:
    """Each `step-000500` in a folder, the earliest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def fault(checkpoint: Path, needed: tuple[str, ...] = ()) -> str:
    """What is wrong with a checkpoint, against the manifest that was written with it; empty when it is whole."""
    from finetune import tensors

    try:
        manifest = reading.read_json(checkpoint / "manifest.json", BaseError, "")
    except BaseError:
        return "no readable manifest"
    for name in dict.fromkeys((*needed, *manifest)):
        if ".." in Path(name).parts or Path(name).is_absolute():
            return "its manifest names a file that lies elsewhere"
        if not reading.is_file(checkpoint / name):
            return f"{name} is missing"
        try:
            found = tensors.file_sha256(checkpoint / name)
        except OSError as e:
            return f"{name} cannot be read: {e.strerror}"
        if found != manifest.get(name):
            return f"{name} is not what was written"
    return ""


def _file_in(path: Path) -> Path:
    """The file in a candidate's folder; any other path as it is."""
    return next(iter(sorted(path.glob("*.safetensors"))), path) if path.parent.name == CANDIDATES else path


def _check(text: str, checkpoint: Path) -> None:
    """Raises BaseError when a checkpoint is damaged, or is none of an adapter."""
    if damage := fault(checkpoint):
        raise BaseError(f"{text}: {checkpoint} is damaged: {damage}", "name another step, or resume the run")
    if reading.is_file(checkpoint / _WHOLE):
        earlier = reading.read_json(checkpoint / "state.json", BaseError, "", finite=False).get("format") == 2
        why = "was written by an earlier version, without alpha" if earlier else "holds all weights of the base"
        next_step = "resume the run, which writes the next ones with alpha" if earlier else "resume the run to its end"
        raise BaseError(f"{text}: {checkpoint} {why}: it is no adapter", next_step)
