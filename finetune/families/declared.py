"""What a diffusers folder declares, held against what its family reads: nothing of it is skipped in silence."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from finetune import reading
from finetune.errors import BaseError
from finetune.families import parts
from finetune.known import known

_OPTIONS = {
    "safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "force_zeros_for_empty_prompt",
    "add_watermarker", "is_distilled",
}  # fmt: skip
"""of model_index.json, beside parts and tokenizers: what the pipelines of our families take"""
_MORE_THAN_PROMPTS = ("Inpaint", "Depth2Img", "InstructPix2Pix", "Upscale", "Variation", "Img2Img", "Fill")
"""in the names of pipelines whose denoisers are given a picture, too"""


def refuse_other_parts(path: Path, kinds: Mapping[str, str]) -> None:
    """kinds: the family's parts, and the class (library:name) that each is of.

    Raises:
        BaseError: the folder is without a part, or has one of another class.
    """
    index = parts.config(path / "model_index.json")
    for name, kind in kinds.items():
        library, _, wanted = kind.partition(":")
        listed = index.get(name)
        said = listed[1] if isinstance(listed, list) and len(listed) == 2 else wanted
        if said is None:
            raise BaseError(f"{path} is without its {name}: model_index.json has none", "take the whole model")
        if wanted == "AutoModel":
            continue
        config = path / name / "config.json"
        own = parts.config(config).get("_class_name") if library == "diffusers" and reading.is_file(config) else None
        if other := next((one for one in (said, own) if one not in (wanted, None)), None):
            raise BaseError(
                f"{path}: its {name} is of the class {other}, not {wanted}",
                "classes of a model's own are not run here: take a base of the plain ones",
            )


def unread(path: Path, folders: Iterable[str], modules: Mapping[str, str], schedulers: Iterable[str]) -> Iterator[str]:
    """Keys of the folder's configurations that nothing takes, by file; folders: of its parts and tokenizers; modules:
    part -> its class; schedulers: classes; all diffusers'."""
    kinds = sorted({*modules.values(), *schedulers})
    taken = known("constructor parameters", kinds, ["diffusers"], lambda: _parameters(kinds))
    yield from _left(path / "model_index.json", {*folders, "scheduler"} | _OPTIONS)
    for name, kind in modules.items():
        yield from _left(path / name / "config.json", set(taken[kind]))
    scheduled = [taken[kind] for kind in schedulers if kind in taken]
    yield from _left(path / "scheduler" / "scheduler_config.json", set().union(*scheduled))


def more_than_prompts(pipeline: str) -> bool:
    return any(word in pipeline for word in _MORE_THAN_PROMPTS)


def _left(file: Path, taken: set[str]) -> Iterator[str]:
    folder = "" if file.name == "model_index.json" else f"{file.parent.name}/"
    for key, value in parts.config(file).items():
        if not key.startswith("_") and key not in taken and value not in (None, [None, None]):
            yield f"{folder}{file.name}: {key[:60]}"


def _parameters(kinds: Iterable[str]) -> dict[str, list[str]]:
    """diffusers' class -> what its constructor takes, of those that there are."""
    import diffusers

    there = {kind: getattr(diffusers, kind) for kind in kinds if hasattr(diffusers, kind)}
    return {kind: sorted(inspect.signature(found.__init__).parameters) for kind, found in there.items()}
