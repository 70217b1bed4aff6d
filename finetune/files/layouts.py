"""Adapter <-> file, for every reader: universal (kohya names), diffusers names, PEFT directories.

What each reader of these files does was measured with its own loading code (diffusers, ComfyUI, kohya, LyCORIS, A1111,
Forge); the rules below are what all of them read with the same result. B1, B4 name diffusers' own limits.
"""

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from finetune import families
from finetune import tensors as weights
from finetune.adapters.lora import COMPONENTS, Lora, Modules, canonical_name
from finetune.errors import BaseError, VerifyError
from finetune.families import lines
from finetune.files import peft_config
from finetune.files.peft_config import PeftConfig


class AdapterFile(NamedTuple):
    modules: Modules
    layout: str
    """universal, kohya, diffusers, diffusers-old, peft, mixed or unknown"""
    metadata: dict[str, str]
    problems: tuple[str, ...]
    """what keeps the file from being read whole: each names its key"""
    doubts: tuple[str, ...]
    """read here, but refused, dropped or read otherwise by a program that people use"""
    unused: tuple[str, ...]
    """keys that nothing was made of"""

    def digest(self) -> str:
        """A short hash of the change itself, whatever it is called in the file."""
        tensors = {f"{n}.{part}": t for n, one in self.modules.items() for part, t in zip("ab", one[:2], strict=True)}
        return weights.digest(weights.fingerprint(tensors) + str([one.scale for one in self.modules.values()]))


MODULE_LIST = "finetune.modules"
DIFFUSERS_CONFIG = "lora_adapter_metadata"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_KEY = re.compile(
    r"(?P<module>.+?)(?P<carrier>\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)"
    r"(?P<part>down|up|mid|A|B)(?:\.default)?\.weight"
)
_DORA = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_ROLES = {"A": "down", "B": "up"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


# -- writing ----------------------------------------------------------------------------------------------------------


def uniform(modules: Modules) -> Modules:
    """The same changes under one rank and scale 1, what every reader agrees on; up is float64, to be cast last.

    diffusers reads one alpha for the whole file (B1), diffusers < 0.36 one rank. Text encoders get zero changes where
    q, k, v or out lack one: diffusers raises or drops the rest without out_proj (B4), OpenCLIP readers without any.
    """
    rank = max(lora.rank for lora in modules.values())
    return {name: _padded(lora, rank) for name, lora in sorted((modules | _completion(modules)).items())}


def universal(modules: Modules, dtype: torch.dtype, family: str) -> dict[str, Tensor]:
    """Tensors of the file that every reader of this family's adapters knows.

    For UNets: kohya's names, one rank, alpha == rank on every module; for transformers diffusers' names, where an alpha
    would be refused.
    """
    known = families.family_class(family)
    if known.layout == "diffusers":
        return diffusers(modules, dtype)
    tensors: dict[str, Tensor] = {}
    for name, lora in uniform(modules).items():
        key = known.kohya_name(name)
        tensors[f"{key}.alpha"] = torch.tensor(float(lora.rank))  # fp32: bf16 would round 257 to 256
        tensors[f"{key}.lora_down.weight"] = _cast(lora.down, dtype, name)
        tensors[f"{key}.lora_up.weight"] = _cast(lora.up, dtype, name)
    return tensors


def diffusers(modules: Modules, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors under diffusers' names; scale 1 needs neither alpha nor lora_adapter_metadata, which ComfyUI ignores."""
    tensors: dict[str, Tensor] = {}
    for name, lora in uniform(modules).items():
        tensors[f"{name}.lora_A.weight"] = _cast(lora.down, dtype, name)
        tensors[f"{name}.lora_B.weight"] = _cast(lora.up, dtype, name)
    return tensors


def write_peft(modules: Modules, folder: Path, metadata: Mapping[str, str]) -> None:
    """The lossless master: folder/COMPONENT, each what `PeftModel.from_pretrained` opens, true ranks and alphas.

    PEFT does not translate names, so the text encoder's are those of the transformers that is installed here.
    """
    for component in dict.fromkeys(name.partition(".")[0] for name in modules):
        inside = {peft_path(n): lora for n, lora in sorted(modules.items()) if n.startswith(f"{component}.")}
        (folder / component).mkdir(parents=True, exist_ok=True)
        tensors = {}
        for path, lora in inside.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = lora.down.float()
            tensors[f"base_model.model.{path}.lora_B.weight"] = lora.up.float()
        weights.write(tensors, folder / component / PEFT_WEIGHTS, metadata)
        config = json.dumps(peft_config.describe(inside), indent=2)
        weights.write_bytes(config.encode(), folder / component / PEFT_CONFIG)


def peft_path(name: str) -> str:
    """The module's path in the installed transformers and diffusers."""
    component, _, path = name.partition(".")
    return path.removeprefix("text_model.") if component == "text_encoder" and _text_level_dropped() else path


@cache
def _text_level_dropped() -> bool:
    major, minor = (int(n) for n in version("transformers").split(".")[:2])
    return (major, minor) >= (5, 6)


def _padded(lora: Lora, rank: int) -> Lora:
    up = lora.up.double() * lora.scale
    missing = rank - lora.rank
    down = torch.cat([lora.down, lora.down.new_zeros(missing, *lora.down.shape[1:])])
    return Lora(down, torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], dim=1), 1.0)


def _completion(modules: Modules) -> Modules:
    """Zero changes for the attention projections that a touched text encoder layer lacks."""
    layers: dict[str, int] = {}
    for name, lora in modules.items():
        if found := re.fullmatch(
            r"(text_encoder(?:_2)?\.text_model\.encoder\.layers\.\d+)\.(self_attn\.\w+|mlp\.fc[12])", name
        ):
            # CLIP's projections are square: fc2 maps back to their width
            layers[found[1]] = lora.down.shape[1] if found[2] == "mlp.fc1" else lora.up.shape[0]
    wanted = ((f"{layer}.self_attn.{p}", width) for layer, width in layers.items() for p in _ATTENTION)
    zero = {name: Lora(torch.zeros(1, width), torch.zeros(width, 1), 1.0) for name, width in wanted}
    return {name: lora for name, lora in zero.items() if name not in modules}


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    found = tensor.to(dtype)
    if not bool(found.isfinite().all()):
        raise VerifyError(f"{name}: the change is not finite in {dtype}", "export it as float32")
    return found


# -- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path, names: Collection[str] | None = None, family: str = "") -> AdapterFile:
    """Any LoRA file, PEFT directory, or run folder.

    Kohya names cannot be parsed back by themselves (is `_` a dot?), so they are looked up in `names`, the canonical
    module names of a base of that family (a mapping to their shapes, to take the original code's fused modules apart).
    Without: in the file's own list, else they stay as they are.

    Raises:
        BaseError: not there, pickled, truncated or not safetensors; an adapter that is not LoRA.
    """
    if path.is_dir():
        return _read_folder(path, names, family)
    header = weights.read_header(path)
    configs = peft_config.parse_flat(header.metadata.get(DIFFUSERS_CONFIG, "{}"), f"{path}, {DIFFUSERS_CONFIG}")
    return _parse(weights.load(path), header.metadata, names, family, configs)


def expected(metadata: Mapping[str, str]) -> dict[str, tuple[int, float]]:
    """canonical name -> (rank, alpha) of the modules a file of ours says it holds; rank 0: zero, for readers' sake."""
    where = f"metadata {MODULE_LIST}"
    table = peft_config.json_object(metadata.get(MODULE_LIST, "{}"), where)
    pairs = {name: pair if isinstance(pair, list) and len(pair) == 2 else [None, None] for name, pair in table.items()}
    return {
        name: (int(peft_config.number(rank, where)), peft_config.number(alpha, where))
        for name, (rank, alpha) in pairs.items()
        if name.partition(".")[0] in COMPONENTS
    }


def module_list(modules: Modules) -> str:
    """The value that `expected` reads."""
    table = {n: [lora.rank, lora.scale * lora.rank] for n, lora in modules.items()}
    return json.dumps(table | {n: [0, 0] for n in _completion(modules)}, separators=(",", ":"), sort_keys=True)


class _Found(NamedTuple):
    """A module's tensors as a file names them."""

    layout: str
    parts: dict[str, Tensor]
    keys: list[str]


def _parse(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    names: Collection[str] | None,
    family: str,
    configs: Mapping[str, PeftConfig],
    component: str = "",
) -> AdapterFile:
    known = names if names is not None else expected(metadata)
    spellings = _spellings(known, family or metadata.get("finetune.family", ""))
    found, unused = _group(tensors)
    modules: Modules = {}
    problems = [_what_it_is(key) for key in unused]
    for raw, module in sorted(found.items()):  # sorted: a list, so that found may shrink
        places = spellings.get(raw) or spellings.get(_bare(raw))
        name = places[0].name if places else raw if module.layout == "kohya" else _plain_name(raw, component, known)
        if known and name not in known:
            problems.append(f"{raw}: the base has no such module")
            unused += found.pop(raw).keys
            continue
        lora = _lora(raw, name, module, configs)
        if isinstance(lora, str):
            problems.append(lora)
            continue
        for place in places or [_Place(name, raw)]:
            if place.name in modules:
                problems.append(f"{raw}: a second change of {place.name}")
            rows = lora.up[place.start : place.stop]
            if len(places or ()) > 1 and places and len(lora.up) != places[-1].stop:
                problems.append(f"{raw}: {len(lora.up)} rows, where the base has {places[-1].stop}")
                break
            modules[place.name] = lora._replace(up=rows.clone() if len(rows) < len(lora.up) else rows)
    doubts = _doubts(found, spellings)
    if DIFFUSERS_CONFIG in metadata and any(m.layout == "kohya" for m in found.values()):
        doubts.append("lora_adapter_metadata beside kohya names: diffusers refuses the file")
    problems += _partly_without_alpha(found)
    layout = _layout(found, modules)
    if layout == "mixed":
        doubts.append("several naming schemes in one file: diffusers drops all but one of them without a word")
    return AdapterFile(modules, layout, dict(metadata), tuple(problems), tuple(doubts), tuple(sorted(set(unused))))


def _group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Found], list[str]]:
    """raw module name -> its tensors, and the keys that are no part of a LoRA."""
    found: dict[str, _Found] = {}
    unused = []
    for key in sorted(tensors, key=lambda k: (k.endswith(".alpha"), k)):  # an alpha joins a module that is there
        match = _KEY.fullmatch(key)
        raw = match["module"] if match else key.removesuffix(".alpha")
        if match:
            part = _ROLES.get(match["part"], match["part"])
            module = found.setdefault(raw, _Found(_scheme(raw, match["carrier"], match["part"]), {}, []))
            if part in module.parts:
                unused.append(key)
            module.parts[part] = tensors[key]
            module.keys.append(key)
        elif raw != key and raw in found:
            found[raw].parts["alpha"] = tensors[key]
            found[raw].keys.append(key)
        else:
            unused.append(key)
    return found, unused


def _scheme(raw: str, carrier: str, part: str) -> str:
    if raw.startswith(("lora_", "lycoris_")):
        return "kohya"
    if carrier == ".lora_" and part in ("A", "B"):
        return "peft" if raw.startswith("base_model.model.") else "diffusers"
    return "diffusers-old"


def _lora(raw: str, name: str, module: _Found, configs: Mapping[str, PeftConfig]) -> Lora | str:
    """The change, or what is wrong with it."""
    parts = module.parts
    missing = [role for role in ("down", "up") if role not in parts]
    if missing:
        return f"{raw}: its {missing[0]} tensor is missing"
    bad = [role for role, tensor in sorted(parts.items()) if not bool(tensor.isfinite().all())]
    if bad:
        return f"{raw}: its {bad[0]} tensor holds values that are not finite"
    down, up = parts["down"].float(), parts["up"].float()
    if "mid" in parts:  # Tucker: k x k between two 1 x 1, the same as k x k then 1 x 1
        down = torch.einsum("ijhw,jn->inhw", parts["mid"].float(), down.flatten(1))
    fits = down.ndim in (2, 4) and up.ndim == down.ndim and up.shape[1] == down.shape[0] and up.shape[2:].numel() == 1
    if not fits or not down.numel() or not up.numel():
        return f"{raw}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit each other"
    rank = down.shape[0]
    component, _, path = name.partition(".")
    config = configs.get(component)
    if config is not None and module.layout != "kohya":
        if config.rank(path) != rank:
            return f"{raw}: rank {rank}, but its configuration says {config.rank(path)}"
        return Lora(down, up, config.scale(path, rank))
    alpha = parts.get("alpha", torch.tensor(float(rank)))
    return Lora(down, up, float(alpha) / rank) if alpha.numel() == 1 else f"{raw}: its .alpha is not one number"


def _plain_name(raw: str, component: str, known: Collection[str]) -> str:
    """A dotted name as files write it -> canonical; `component` when the file does not say."""
    path = raw.removeprefix("base_model.model.").removeprefix("diffusion_model.").replace(".processor.", ".")
    head, _, rest = path.partition(".")
    if head in COMPONENTS:
        component, path = head, rest
    elif not component:
        text = re.search(r"(^|\.)encoder\.layers\.", path)
        known_as = next((c for c in COMPONENTS if f"{c}.{path}" in known), "")
        component = "text_encoder" if text else known_as or lines.denoiser_of(path)
    last = path.rpartition(".")[2]
    if component.startswith("text_encoder") and last in _OLD_TEXT:
        path = path.removesuffix(last) + _OLD_TEXT[last]
    return canonical_name(component, path + ".0" if component == "unet" and last == "to_out" else path)


class _Place(NamedTuple):
    """What a name in a file means."""

    name: str
    """canonical"""
    right: str
    """how kohya's own readers want it written"""
    start: int = 0
    stop: int | None = None
    """the rows of a module that the original code has in one piece"""


def _spellings(names: Collection[str], family: str) -> dict[str, list[_Place]]:
    """Each spelling that some exporter writes -> the places it means: several for a fused module, in its order."""
    known = families.family_class(family or next(iter(families.FAMILIES)))
    index: dict[str, list[_Place]] = {}
    fused: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        right = known.kohya_name(name)
        for spelled in (*_misspelt(name, right), right):
            index[spelled] = [_Place(name, right)]
        if original := known.original(name):
            fused.setdefault(original.name, []).append((original.piece, name))
    for written, pieces in fused.items():
        places = [_Place(name, written) for _, name in sorted(pieces)]
        if len(places) > 1:
            if not isinstance(names, Mapping):
                continue  # without the base's shapes nobody knows which rows are whose
            ends = list(itertools.accumulate((names[place.name][0] for place in places), initial=0))
            places = [p._replace(start=a, stop=b) for p, (a, b) in zip(places, itertools.pairwise(ends), strict=True)]
        for spelled in (written, "lora_unet_" + written.replace(".", "_")):
            index[spelled] = [place._replace(right=spelled) for place in places]
    return index


def _bare(raw: str) -> str:
    """A dotted name without what programs put before it."""
    for prefix in ("base_model.model.", "diffusion_model.", "transformer."):
        raw = raw.removeprefix(prefix)
    return raw


def _misspelt(name: str, right: str) -> list[str]:
    """diffusers' converter writes lora_te1_ for the only encoder, and its own names for SDXL's UNet; exporters under
    transformers 5 lose text_model_. Of transformers, OneTrainer, musubi and LyCORIS put other words before the path."""
    component, _, path = name.partition(".")
    if component == "unet":
        return ["lora_unet_" + path.replace(".", "_")]
    if component == "transformer":
        return [prefix + path.replace(".", "_") for prefix in ("lora_transformer_", "lora_unet_", "lycoris_")]
    spelled = [right, right.replace("lora_te_", "lora_te1_", 1)]
    return [*spelled, *(one.replace("_text_model_", "_", 1) for one in spelled)]


def _doubts(found: Mapping[str, _Found], index: Mapping[str, Sequence[_Place]]) -> list[str]:
    kohya = [raw for raw, module in found.items() if module.layout == "kohya"]
    unets = [raw for raw in kohya if raw not in index or not index[raw][0].name.startswith("transformer.")]
    misspelt = [raw for raw in unets if raw in index and raw != index[raw][0].right]
    doubts = []
    if misspelt:
        right = index[misspelt[0]][0].right
        doubts.append(f"{len(misspelt)} modules named like {misspelt[0]}: kohya and LyCORIS know it as {right} only")
    if unets and not any("alpha" in found[raw].parts for raw in unets):
        doubts.append("no .alpha on any module: taken as alpha = rank here, LyCORIS refuses the file")
    if any("alpha" in m.parts for m in found.values() if m.layout != "kohya"):
        doubts.append("an .alpha beside dotted names: diffusers refuses the file")
    return doubts


def _partly_without_alpha(found: Mapping[str, _Found]) -> list[str]:
    kohya = {raw: m for raw, m in found.items() if m.layout == "kohya"}
    without = [raw for raw, m in sorted(kohya.items()) if "alpha" not in m.parts]
    return [f"{raw}: its .alpha is missing, others have one" for raw in without] if len(without) < len(kohya) else []


def _layout(found: Mapping[str, _Found], modules: Modules) -> str:
    schemes = {module.layout for module in found.values()}
    if len(schemes) != 1:
        return "mixed" if schemes else "unknown"
    layout = schemes.pop()
    same = len({lora.rank for lora in modules.values()}) == 1 and all(lora.scale == 1 for lora in modules.values())
    carried = all("alpha" in module.parts for module in found.values())
    return "universal" if layout == "kohya" and same and carried else layout


def _what_it_is(key: str) -> str:
    if key.endswith(_DORA):
        return f"{key}: a DoRA magnitude, which this version does not read and most programs misapply"
    if re.search(r"\.(hada|lokr)_\w+$", key):
        return f"{key}: {'LoHa' if 'hada' in key else 'LoKr'}, not LoRA"
    if key.endswith(".alpha"):
        return f"{key}: an .alpha without a change"
    return f"{key}: not a LoRA tensor"


# -- PEFT directories and configurations ------------------------------------------------------------------------------


def _read_folder(folder: Path, names: Collection[str] | None, family: str) -> AdapterFile:
    inside = adapter_in(folder)
    if inside != folder:
        return read(inside, names, family)
    children = [folder / c for c in COMPONENTS if (folder / c / PEFT_CONFIG).is_file()] or [folder]
    files = [_read_peft(child, names, family) for child in children]
    modules = {n: lora for file in files for n, lora in file.modules.items()}
    joined = [tuple(x for file in files for x in getattr(file, f)) for f in ("problems", "doubts", "unused")]
    return AdapterFile(modules, "peft", files[0].metadata, *joined)


def adapter_in(folder: Path) -> Path:
    """Where, in a run folder, an adapter folder or a hub download, the adapter is."""
    if (folder / PEFT_CONFIG).is_file() or any((folder / c / PEFT_CONFIG).is_file() for c in COMPONENTS):
        return folder
    for inside in (folder / "adapter" / "peft", folder / "peft", folder / "pytorch_lora_weights.safetensors"):
        if inside.exists():
            return inside
    raise BaseError(f"no adapter in {folder}", "give a LoRA file, a PEFT directory or a run folder")


def _read_peft(folder: Path, names: Collection[str] | None, family: str) -> AdapterFile:
    try:
        text = (folder / PEFT_CONFIG).read_text(encoding="utf-8")
    except OSError as e:
        raise BaseError(f"{folder} has no {PEFT_CONFIG}", "is the PEFT directory whole?") from e
    where = str(folder / PEFT_CONFIG)
    config = peft_config.parse(peft_config.json_object(text, where), where)
    pickled = folder / "adapter_model.bin"
    file = folder / PEFT_WEIGHTS if not pickled.is_file() or (folder / PEFT_WEIGHTS).is_file() else pickled
    header = weights.read_header(file)
    component = folder.name if folder.name in COMPONENTS else ""
    configs = dict.fromkeys(COMPONENTS, config)
    return _parse(weights.load(file), header.metadata, names, family, configs, component)
