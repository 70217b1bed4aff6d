"""What an adapter file says of itself: kohya's ss_*, ModelSpec 1.0.1, our own finetune.*, and the trigger's sidecar.

ModelSpec: github.com/Stability-AI/ModelSpec. All values are strings; none may name a person's machine.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, get_args

from safetensors.torch import save
from torch import Tensor

from finetune import __version__, families
from finetune.adapters.change import AdapterState
from finetune.diffusion.process import Prediction
from finetune.errors import RunError
from finetune.families import lines
from finetune.families.base import BaseInfo
from finetune.files.read import MODULE_LIST, module_list
from finetune.reporting.public import MOST_RECIPE_BYTES, leak, public

MAX_HEADER_BYTES = 1 << 20  # ComfyUI shows no metadata of longer headers


@dataclass(frozen=True)
class About:
    """What is worth telling of an adapter, beside its weights. Empty: not known."""

    family: str
    """in our registry: decides what modules are called in files"""
    line: str
    """of models, as people call it"""
    base_version: str
    """kohya's ss_base_model_version"""
    architecture: str
    """ModelSpec's name of the line"""
    prediction: Prediction
    resolution: int
    """px"""
    base: str = ""
    """`pocket` or a hub id; a local path must not be here"""
    base_fingerprint: str = ""
    trigger: str = ""
    class_word: str = ""
    kind: str = ""
    """product, style or "": what the training pictures show"""
    title: str = ""
    license: str = ""
    description: str = ""
    recipe: str = ""
    """TOML, without local paths"""
    steps: int = 0
    dataset_fingerprint: str = ""
    dataset_images: int = 0
    dataset_license: str = ""
    """of the training pictures, in words: how many under which licence, and their authors"""
    dataset_credits: str = ""
    """a line for each author whose licence asks to be named"""
    parent: str = ""
    """fingerprint of the adapter it went on from"""
    parent_license: str = ""
    """of that adapter, and of its images, in words; empty where it says none"""

    @property
    def activation(self) -> str:
        """What a prompt says to call it, as captions did: the trigger, of a style `sks style`."""
        return f"{self.trigger} style" if self.kind == "style" and self.trigger else self.trigger

    @classmethod
    def of(cls, facts: BaseInfo, resolution: int = 0, **told: Any) -> "About":
        """Of an adapter for a base of which these are the facts."""
        line = families.family_class(facts.family).published(facts)
        return cls(facts.family, line.title, line.base_version, line.architecture, facts.prediction,
                   resolution or facts.resolution, **told)  # fmt: skip

    def published(self) -> "About":
        """The same with texts as they may be published: one line each, none without a bound, no path in them. For
        texts of other files; a run's own were cleaned, and noted, when it was planned."""
        cleaned: dict[str, Any] = {name: public(getattr(self, name)).text for name in _SHORT_TEXTS}
        recipe = self.recipe if _publishable(self.recipe) else ""
        return replace(self, **cleaned, recipe=recipe, dataset_credits=_lines(self.dataset_credits))


def _lines(text: str) -> str:
    """The same of a text with a line for each."""
    return "\n".join(public(line).text for line in text[:MOST_RECIPE_BYTES].split("\n"))


_SHORT_TEXTS = ("title", "trigger", "class_word", "license", "description", "base", "dataset_license", "parent_license")
_WORDS_OF_THE_USER = (*_SHORT_TEXTS, "dataset_credits", "recipe")
_RECIPE = "finetune.recipe"


def make_metadata(about: About, modules: AdapterState, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """All metadata of a file that will hold `tensors`.

    Raises:
        RunError: a value names this machine or its user; or the header would pass 1 MiB.
    """
    rank = max(change.rank for change in modules.values())
    digest = tensors_sha256(tensors)
    tables = {
        "format": "pt",
        "sshs_model_hash": digest,
        **_kohya(about, modules, name, rank),
        **_modelspec(about, name),
        "modelspec.hash_sha256": f"0x{digest}",
        **_own(about),
        MODULE_LIST: module_list(modules),
    }
    metadata = {key: value for key, value in tables.items() if value}
    refuse_local(metadata, about)
    size = len(json.dumps(metadata, ensure_ascii=False).encode()) + sum(len(key) + 80 for key in tensors)
    if size > MAX_HEADER_BYTES:
        raise RunError(
            f"the header of {name} would take {size:,} bytes, more than 1 MiB", "shorten the recipe or title"
        )
    return metadata


def about(metadata: Mapping[str, str]) -> About | None:
    """What a file of ours tells; None when it is not ours."""
    prediction = next((p for p in get_args(Prediction) if p == metadata.get("finetune.prediction")), None)
    if not metadata.get("finetune.base_version") or prediction is None:
        return None
    told = {f.name: metadata.get(f"finetune.{f.name}", "") for f in fields(About)}
    texts = {key: value for key, value in told.items() if key in _TEXTS}
    counts = {key: int(value) for key, value in told.items() if key in _COUNTS and value.isdecimal()}
    return About(**{"prediction": prediction, "resolution": 512} | texts | counts)


def sidecar(about: About, name: str) -> str:
    """NAME.json, from which A1111 and Forge take the trigger. JSON."""
    line = lines.line_of(about.base_version)
    card = {
        "activation text": about.activation,
        "negative text": "",
        "preferred weight": 1.0,
        "sd version": line.card if line else "Unknown",
        "description": about.description or about.title or name,
        "notes": f"made with finetune {__version__}",
    }
    refuse_local({key: str(value) for key, value in card.items()}, about)
    return json.dumps(card, indent=2, ensure_ascii=False) + "\n"


def refuse_local(texts: Mapping[str, str], about: About | None = None, prompts: Sequence[str] = ()) -> None:
    """A last gate before anything is published. prompts: what the user wrote, beside what stands in `about`.

    Raises:
        RunError: names the key that holds a local path, or this machine's host or user name. A user or host name is
            let through where the user wrote that word into the recipe, the title or the trigger.
    """
    written = " ".join([*(str(getattr(about, f)) for f in _WORDS_OF_THE_USER if about), *prompts])
    for key, text in texts.items():
        if found := next((found for one in _parts(key, text) if (found := leak(one, written))), ""):
            raise RunError(f"{key} would publish {found}", "leave paths out of titles and captions")


def _parts(key: str, text: str) -> Iterator[str]:
    """The texts in a text: of a recipe its values, as TOML writes a backslash twice, and two of them begin a path."""
    try:
        yield from _leaves(tomllib.loads(text)) if key == _RECIPE else (text,)
    except ValueError:
        yield text


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        for one in inside:
            yield from _leaves(one)
    elif isinstance(value, str):
        yield value


def _publishable(recipe: str) -> bool:
    return len(recipe.encode("utf-8", "replace")) <= MOST_RECIPE_BYTES and not any(map(leak, _parts(_RECIPE, recipe)))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of the bytes after the header of the file that will hold them: metadata does not change it. Hex."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    header = int.from_bytes(content[:8], "little")
    return hashlib.sha256(memoryview(content)[8 + header :]).hexdigest()


def _kohya(about: About, modules: AdapterState, name: str, rank: int) -> dict[str, str]:
    line = lines.line_of(about.base_version)
    convolutions = any(len(change.shape) == 4 and change.shape[-1] > 1 for change in modules.values())
    arguments = {"conv_dim": str(rank), "conv_alpha": str(rank)} if convolutions else {}
    return {
        "ss_base_model_version": about.base_version,
        "ss_v2": str(line is not None and line.v2),
        "ss_network_module": "networks.lora" if all(change.of_lora() for change in modules.values()) else "",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": name,
        "ss_resolution": f"({about.resolution}, {about.resolution})",
        "ss_tag_frequency": json.dumps({"1_trigger": {about.trigger: max(1, about.dataset_images)}}, ensure_ascii=False)
        if about.trigger
        else "",
        "ss_num_train_images": str(about.dataset_images or ""),
        "ss_steps": str(about.steps or ""),
    }


def _modelspec(about: About, name: str) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{about.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": about.title or name,
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{about.resolution}x{about.resolution}",
        "modelspec.prediction_type": about.prediction,
        "modelspec.trigger_phrase": about.trigger,
        "modelspec.license": about.license,
        "modelspec.description": about.description,
    }


def _own(about: About) -> dict[str, str]:
    told = {f"finetune.{f.name}": str(getattr(about, f.name) or "") for f in fields(About)}
    return {"finetune.version": __version__} | told


_COUNTS = ("resolution", "steps", "dataset_images")
_TEXTS = tuple(f.name for f in fields(About) if f.name not in ("prediction", *_COUNTS))
