"""What files call a module, and which canonical name each spelling means."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

from finetune import families
from finetune.adapters.change import canonical_name
from finetune.adapters.methods import METHODS
from finetune.families import lines

_ADAPTER = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)\.(?!(?:weight|bias)$)([^.]+)(?=(\.weight)?$)")
"""a key as PEFT has it in memory, with the adapter's name: lora_A.default.weight"""
_WRAPPED = re.compile(r"(?<![^.])(base_model\.model|_orig_mod|module)\.")
"""what PEFT, torch.compile and DistributedDataParallel put before the names of what they wrap"""
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Meaning(NamedTuple):
    """What a name in a file means."""

    name: str
    """canonical"""
    right: str
    """how kohya's own readers want it written"""
    start: int = 0
    stop: int | None = None
    """the rows of a module that the original code has in one piece"""


def possible_components(family: str) -> tuple[str, ...]:
    """Names of all that an adapter of this family may change, and of its other text encoders; "": of any family."""
    known = families.registry()
    kinds = [families.family_class(name) for name in ([family] if family in known else known)]
    return tuple(dict.fromkeys(c for kind in kinds for c in (kind.denoiser_name, *kind.presets, *kind.encoders)))


def split(key: str) -> tuple[str, str, str] | None:
    """A key -> (what comes before, the tensor's role, the layout of files that ends a key so); None: no method's."""
    plain = _ADAPTER.sub(r".\1", key)
    for ending, role, layout in _endings():
        if plain.endswith(ending) and len(plain) > len(ending):
            raw = plain.removesuffix(ending)
            return raw, role, _layout(raw, layout)
    return None


def in_memory(key: str) -> bool:
    """It has an adapter's name in it, as PEFT's own files have not."""
    return _ADAPTER.search(key) is not None


def unwrapped(raw: str) -> str:
    """A module's name without what wrappers put before it, or inside."""
    return _WRAPPED.sub("", re.sub(r"^(lora_[a-z0-9]+_)(?:(?:_orig_mod|module)_)+", r"\1", raw))


@cache
def _endings() -> list[tuple[str, str, str]]:
    """Of all methods, the longest first."""
    found = {
        ending: (role, layout)
        for method in METHODS.values()
        for layout, roles in method.KEYS.items()
        for ending, role in roles.items()
    }
    return sorted(((e, *told) for e, told in found.items()), key=lambda one: (-len(one[0]), one))


def _layout(raw: str, layout: str) -> str:
    if raw.startswith(("lora_", "lycoris_")):
        return "kohya"
    if layout in ("diffusers", "peft"):
        return "peft" if raw.startswith("base_model.model.") else "diffusers"
    return "diffusers-old"


def plain_name(raw: str, component: str, known: Collection[str], heads: Sequence[str]) -> str:
    """A dotted name as files write it -> canonical; `component` when the file does not say. heads: components that a
    name may begin with; one more of a kind (`transformer_2`) is a component as well, that the base may not have."""
    path = raw.removeprefix("diffusion_model.").replace(".processor.", ".")
    head, _, rest = path.partition(".")
    if head in heads or re.sub(r"_\d+$", "", head) in heads:
        component, path = head, rest
    elif not component:
        text = re.search(r"(^|\.)encoder\.layers\.", path)
        known_as = next((c for c in heads if f"{c}.{path}" in known), "")
        component = "text_encoder" if text else known_as or lines.denoiser_of(path)
    last = path.rpartition(".")[2]
    if component.startswith("text_encoder") and last in _OLD_TEXT:
        path = path.removesuffix(last) + _OLD_TEXT[last]
    return canonical_name(component, path + ".0" if component == "unet" and last == "to_out" else path)


def spellings(names: Collection[str], family: str) -> dict[str, list[Meaning]]:
    """Each spelling that some exporter writes -> what it means: several modules for a fused one, in its order."""
    known = families.family_class(family or next(iter(families.FAMILIES)))
    index: dict[str, list[Meaning]] = {}
    fused: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        right = known.kohya_name(name)
        for spelled in _misspelt(name, right):
            index.setdefault(spelled, [Meaning(name, right)])  # of two denoisers, the first
        index[right] = [Meaning(name, right)]
        if original := known.original(name):
            fused.setdefault(original.name, []).append((original.piece, name))
    for written, pieces in fused.items():
        places = [Meaning(name, written) for _, name in sorted(pieces)]
        if len(places) > 1:
            if not isinstance(names, Mapping):
                continue  # without the base's shapes nobody knows which rows are whose
            ends = list(itertools.accumulate((names[place.name][0] for place in places), initial=0))
            places = [p._replace(start=a, stop=b) for p, (a, b) in zip(places, itertools.pairwise(ends), strict=True)]
        for spelled in (written, "lora_unet_" + written.replace(".", "_")):
            index[spelled] = [place._replace(right=spelled) for place in places]
    return index


def bare(raw: str) -> str:
    """A dotted name without what programs put before it."""
    for prefix in ("diffusion_model.", "transformer."):
        raw = raw.removeprefix(prefix)
    return raw


def _misspelt(name: str, right: str) -> Iterator[str]:
    """diffusers' converter writes lora_te1_ for the only encoder, and its own names for SDXL's UNet; exporters under
    transformers 5 lose text_model_. Of transformers, OneTrainer, musubi and LyCORIS put other words before the path."""
    component, _, path = name.partition(".")
    if component.startswith("text_encoder"):
        spelled = (right, right.replace("lora_te_", "lora_te1_", 1))
        yield from (*spelled, *(one.replace("_text_model_", "_", 1) for one in spelled))
    else:
        prefixes = ("lora_unet_",) if component == "unet" else ("lora_transformer_", "lora_unet_", "lycoris_")
        yield from (prefix + path.replace(".", "_") for prefix in prefixes)


def peft_path(name: str) -> str:
    """The module's path in the installed transformers and diffusers."""
    component, _, path = name.partition(".")
    return path.removeprefix("text_model.") if component == "text_encoder" and _text_level_dropped() else path


@cache
def _text_level_dropped() -> bool:
    major, minor = (int(n) for n in version("transformers").split(".")[:2])
    return (major, minor) >= (5, 6)
