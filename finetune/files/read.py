"""Any adapter file, PEFT directory or run folder -> what it changes, and all that keeps it from being read whole."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from finetune import families, reading, references
from finetune import tensors as weights
from finetune.adapters.change import AdapterState, Change
from finetune.adapters.methods import METHODS
from finetune.choices import ReaderName
from finetune.errors import BaseError
from finetune.files import peft as peft_config
from finetune.files.diffusers import completion
from finetune.files.kinds import STRENGTH, Findings, kind_of
from finetune.files.names import (
    Meaning,
    bare,
    in_memory,
    plain_name,
    possible_components,
    spellings,
    split,
    unwrapped,
)  # fmt: skip
from finetune.files.peft import PEFT_CONFIG, PEFT_WEIGHTS, PeftConfig
from finetune.files.spelling import Misreadings, Spelled
from finetune.unchanged import files_in


class AdapterFile(NamedTuple):
    modules: AdapterState
    layout: str
    """universal, kohya, diffusers, diffusers-old, peft, mixed or unknown"""
    metadata: dict[str, str]
    problems: tuple[str, ...]
    """what keeps the file from being read whole: each names its key"""
    warnings: tuple[str, ...]
    """what was assumed"""
    unused: tuple[str, ...]
    """keys that nothing was made of"""
    notes: tuple[str, ...] = ()
    """worth knowing, and of no consequence for what it does"""
    claims: tuple[ReaderName, ...] = ()
    """the programs that it is meant for, by its names"""
    known_to: tuple[ReaderName, ...] = ()
    """the programs that know any of its names"""
    misread: Mapping[ReaderName, str] = {}
    """program -> the first that it gets wrong in this file, as far as its names tell"""

    def digest(self) -> str:
        """A short hash of the change itself, whatever it is called in the file."""
        tensors = {
            f"{n}.{part}": t
            for n, c in self.modules.items()
            for part, t in zip("abc", c.tensors().values(), strict=False)
        }
        return weights.digest(weights.fingerprint(tensors) + str([one.scale for one in self.modules.values()]))


MODULE_LIST = "finetune.modules"
DIFFUSERS_CONFIG = "lora_adapter_metadata"
EMA_FOLDER = "ema"
"""of a checkpoint: where the running mean is"""
ASSUMED = f"PEFT's names without alpha: taken as alpha = rank, but {STRENGTH}"
"""a warning"""
PEFT_PICKLED = "adapter_model.bin"
_SCALES = frozenset({"alpha", "mid"})
"""roles that a change of any method may have"""


def read_adapter(path: Path, names: Collection[str] | None = None, family: str = "") -> AdapterFile:
    """Any LoRA file, PEFT directory, or run folder.

    Kohya names cannot be parsed back by themselves (is `_` a dot?), so they are looked up in `names`, the canonical
    module names of a base of that family (a mapping to their shapes, to take the original code's fused modules apart).
    Without: in the file's own list, else they stay as they are.

    Raises:
        BaseError: not there, pickled, truncated or not safetensors; an adapter of no method that is known.
    """
    if reading.is_dir(path):
        return _read_folder(path, names, family)
    if path.name in (PEFT_WEIGHTS, PEFT_PICKLED) and reading.is_file(path.parent / PEFT_CONFIG):
        return _read_peft(path.parent, names, family, _component(path.parent, family))
    header = weights.read_header(path)
    configs = peft_config.parse_flat(header.metadata.get(DIFFUSERS_CONFIG, "{}"), f"{path}, {DIFFUSERS_CONFIG}")
    found = _parse(weights.load_tensors(path), header.metadata, names, family, configs.get)
    if configs or MODULE_LIST in header.metadata or not found.modules or not _alpha_is_elsewhere(header.shapes):
        return found
    if path.name == PEFT_WEIGHTS:
        raise BaseError(
            f"{path} has no {PEFT_CONFIG} beside it, where PEFT keeps alpha: its strength is not known",
            f"put the {PEFT_CONFIG} that came with it beside it, or name the folder that it was in",
        )
    return found._replace(warnings=(*found.warnings, ASSUMED))


def _alpha_is_elsewhere(keys: Collection[str]) -> bool:
    """Are these the keys of a PEFT directory's file?"""
    return any("base_model.model." in key for key in keys) and not any(k.endswith(".alpha") for k in keys)


def expected(metadata: Mapping[str, str]) -> dict[str, tuple[int, float]]:
    """canonical name -> (rank, alpha) of the modules a file of ours says it holds; rank 0: zero, for readers' sake."""
    where = f"metadata {MODULE_LIST}"
    table = peft_config.json_object(metadata.get(MODULE_LIST, "{}"), where)
    pairs = {name: pair if isinstance(pair, list) and len(pair) == 2 else [None, None] for name, pair in table.items()}
    return {
        name: (int(peft_config.number(rank, where)), peft_config.number(alpha, where))
        for name, (rank, alpha) in pairs.items()
    }


def module_list(modules: AdapterState) -> str:
    """The value that `expected` reads."""
    table = {n: [change.rank, change.scale * change.rank] for n, change in modules.items()}
    return json.dumps(table | {n: [0, 0] for n in completion(modules)}, separators=(",", ":"), sort_keys=True)


class _Tensors(NamedTuple):
    """A module's tensors as a file names them."""

    layout: str
    roles: dict[str, Tensor]
    keys: list[str]


def _parse(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    names: Collection[str] | None,
    family: str,
    config_of: Callable[[str], PeftConfig | None],
    component: str = "",
) -> AdapterFile:
    """config_of: how PEFT scales a component; component: the one that the file is of, when it does not say itself."""
    told = expected(metadata)
    known = names if names is not None else told
    family = family or metadata.get("finetune.family", "")
    meanings = spellings(known, family)
    heads = tuple(dict.fromkeys([*(name.partition(".")[0] for name in known), *possible_components(family)]))
    found, unused = _group(tensors)
    modules: AdapterState = {}
    spelled: list[Spelled] = []
    problems = Findings()
    for key in unused:
        problems.add(key, kind_of(key) if not _role(key) else "a second tensor for one place: are these two adapters?")
    for raw, module in sorted(found.items()):  # sorted: a list, so that found may shrink
        inside = unwrapped(raw)
        meant = meanings.get(raw) or meanings.get(inside) or meanings.get(bare(inside)) or []
        plain = inside if module.layout == "kohya" else plain_name(inside, component, known, heads)
        name = meant[0].name if meant else plain
        if known and name not in known:
            problems.add(raw, "the base has no such module")
            unused += found.pop(raw).keys
            continue
        change = _change(name, module, config_of, told)
        if isinstance(change, str):
            problems.add(raw, change)
            continue
        if isinstance(names, Mapping) and len(meant) < 2:
            change = _in_shape(change, names[name])
        right = meant[0].right if meant else ""
        spelled.append(Spelled(raw, name, right, module.layout == "kohya", frozenset(module.roles)))
        for meaning in meant or [Meaning(name, raw)]:
            if meaning.name in modules:
                problems.add(raw, f"a second change of {meaning.name}")
            if len(meant) > 1 and change.shape[0] != meant[-1].stop:
                problems.add(raw, f"{change.shape[0]} rows, where the base has {meant[-1].stop}")
                break
            modules[meaning.name] = change.rows(meaning.start, meaning.stop) if len(meant) > 1 else change
    for raw in _partly_without_alpha(found):
        problems.add(raw, "its .alpha is missing, others have one")
    layout = _layout(found, modules, family)
    configs = [config_of(component) for component in dict.fromkeys(n.partition(".")[0] for n in modules)]
    notes = dict.fromkeys(note for config in configs if config for note in config.notes)
    misread = Misreadings(spelled, modules, metadata, family)
    return AdapterFile(
        modules, layout, dict(metadata), tuple(problems), (), tuple(sorted(set(unused))), tuple(notes),
        misread.claims(), misread.knowing(), misread.found(),
    )  # fmt: skip


def _group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Tensors], list[str]]:
    """raw module name -> its tensors, and the keys that are no part of an adapter."""
    found: dict[str, _Tensors] = {}
    unused = []
    for key in sorted(tensors, key=lambda k: (k.endswith(".alpha"), k)):  # an alpha joins a module that is there
        told = split(key)
        if told is None or (told[1] == "alpha" and told[0] not in found):
            unused.append(key)
            continue
        raw, role, layout = told
        module = found.setdefault(raw, _Tensors(layout, {}, []))
        if role in module.roles:
            unused.append(key)
        module.roles[role] = tensors[key]
        module.keys.append(key)
    return found, unused


def _role(key: str) -> str:
    """Of a change's tensor; empty: of none, or an alpha."""
    told = split(key)
    return "" if told is None or told[1] == "alpha" else told[1]


def _change(
    name: str, module: _Tensors, config_of: Callable[[str], PeftConfig | None], told: Mapping[str, tuple[int, float]]
) -> Change | str:
    """The change, or what is wrong with it. told: rank and alpha as a file of ours lists them, which are those of its
    tensors in a PEFT file only."""
    roles = module.roles
    own = roles.keys() - _SCALES
    fitting = [method for method in METHODS.values() if own <= method.ROLES]
    kind, method = next(((k, m) for k, m in METHODS.items() if own == m.ROLES), ("", None))
    if method is None:
        nearest = min((method.ROLES for method in fitting), key=len, default=own)
        missing = sorted(nearest - own) or sorted(own)
        return f"its {missing[0]} tensor is missing"
    if whole := [role for role, tensor in sorted(roles.items()) if _is_packed(role, tensor)]:
        return (
            f"its {whole[0]} tensor is of {str(roles[whole[0]].dtype).removeprefix('torch.')}, which holds no weights"
        )
    roles = {role: tensor.float() for role, tensor in roles.items()}  # of 8-bit floats little else can be asked
    bad = [role for role, tensor in sorted(roles.items()) if not bool(tensor.isfinite().all())]
    if bad:
        return f"its {bad[0]} tensor holds values that are not finite"
    rank, (component, _, path) = roles["down"].shape[0], name.partition(".")
    if "mid" in roles:
        rank = roles["mid"].shape[0]
    config = config_of(component)
    if config is not None and module.layout != "kohya":
        if config.rank(path) != rank:
            return f"rank {rank}, but its configuration says {config.rank(path)}"
        if config.kind != kind:
            return f"{method.TITLE}, but its configuration says {METHODS[config.kind].TITLE}"
        return method.of_tensors(roles, config.scale(path, rank))
    if "alpha" not in roles and any(in_memory(key) for key in module.keys):
        return "named as PEFT holds it in memory (lora_A.NAME.weight), without its alpha: " + STRENGTH
    own_alpha = told[name][1] if module.layout == "peft" and name in told else float(rank)
    alpha = roles.get("alpha", torch.tensor(own_alpha))
    return method.of_tensors(roles, float(alpha) / rank) if alpha.numel() == 1 else "its .alpha is not one number"


def _in_shape(change: Change, shape: tuple[int, ...]) -> Change:
    """A 1 x 1 convolution that is written as a linear layer, or the reverse, in the base's own shape."""
    ones = (1,) * (len(shape) - 2)
    if change.shape == shape or (*change.shape[:2], *ones) != shape or math.prod(change.shape[2:]) != 1:
        return change
    roles = {role: t.reshape(*t.shape[:2], *ones) if t.ndim > 1 else t for role, t in change.tensors().items()}
    if "magnitude" in roles:
        roles["magnitude"] = roles["magnitude"].flatten()
    found = METHODS[change.kind].of_tensors(roles, change.scale)
    return change if isinstance(found, str) else found


def _is_packed(role: str, tensor: Tensor) -> bool:
    """Whole numbers, in which other programs pack quantised weights; an alpha may be one."""
    return role != "alpha" and not tensor.is_floating_point()


def _partly_without_alpha(found: Mapping[str, _Tensors]) -> list[str]:
    kohya = {raw: m for raw, m in found.items() if m.layout == "kohya"}
    without = [raw for raw, m in sorted(kohya.items()) if "alpha" not in m.roles]
    return without if len(without) < len(kohya) else []


def _layout(found: Mapping[str, _Tensors], modules: AdapterState, family: str) -> str:
    schemes = {module.layout for module in found.values()}
    if len(schemes) != 1:
        return "mixed" if schemes else "unknown"
    layout = schemes.pop()
    same = len({c.rank for c in modules.values()}) == 1 and all(c.scale == 1 and c.of_lora() for c in modules.values())
    carried = all("alpha" in module.roles for module in found.values())
    kohyas = not family or families.family_class(family).layout == "kohya"
    return "universal" if layout == "kohya" and kohyas and same and carried else layout


# -- PEFT directories and configurations ------------------------------------------------------------------------------


def _read_folder(folder: Path, names: Collection[str] | None, family: str) -> AdapterFile:
    inside = adapter_in(folder)
    if inside != folder:
        return read_adapter(inside, names, family)
    whole = reading.is_file(folder / PEFT_CONFIG)
    inner = [child for child in _peft_folders(folder) if not whole or child.name in possible_components(family)]
    own = [_read_peft(folder, names, family, _component(folder, family))] if whole else []
    files = [*own, *(_read_peft(child, names, family, child.name) for child in inner)]
    modules = {n: change for file in files for n, change in file.modules.items()}
    problems, warnings, unused, notes = (
        tuple(x for f in files for x in getattr(f, k)) for k in ("problems", "warnings", "unused", "notes")
    )
    family = family or files[0].metadata.get("finetune.family", "")
    strange = [child.name for child in inner if family and child.name not in possible_components(family)]
    problems += tuple(
        f"{name}: {family} has no such component, only {', '.join(possible_components(family))}" for name in strange
    )
    return AdapterFile(modules, "peft", files[0].metadata, problems, warnings, unused, notes)  # for PEFT alone


def adapter_in(folder: Path) -> Path:
    """Where the adapter is, in a run folder, an adapter folder, a checkpoint or a hub download. Of a checkpoint with a
    running mean it is that mean, which the run exports as well."""
    inside = (folder / "adapter" / "peft", folder / "peft", folder / EMA_FOLDER)
    if not reading.is_file(folder / PEFT_CONFIG):
        for place in (*inside, folder / "pytorch_lora_weights.safetensors"):
            if reading.exists(place):
                return place
        if not _peft_folders(folder):
            known = references.listed(folder)
            why = ": its run has not ended" if known else ""
            raise BaseError(
                f"no adapter in {folder}{why}", known or "give a LoRA file, a PEFT directory or a run folder"
            )
    return folder


def adapter_files(path: Path) -> list[Path]:
    """What an adapter is read from: its file, or all in its PEFT directories. Raises BaseError as `adapter_in`."""
    return files_in(adapter_in(path)) if reading.is_dir(path) else [path]


def _component(folder: Path, family: str) -> str:
    """Of the model, that a PEFT directory is of by its name; empty when the name does not say."""
    return folder.name if folder.name in possible_components(family) else ""


def _peft_folders(folder: Path) -> list[Path]:
    """One a component; also one that lacks its configuration or its weights, which is then an error, not left out."""
    found = {file.parent for name in (PEFT_CONFIG, PEFT_WEIGHTS) for file in folder.glob(f"*/{name}")}
    return sorted(path for path in found if not path.name.startswith("."))


def _read_peft(folder: Path, names: Collection[str] | None, family: str, component: str) -> AdapterFile:
    file = folder / PEFT_CONFIG
    if not reading.exists(file):
        raise BaseError(f"{folder} has no {PEFT_CONFIG}", "is the PEFT directory whole?")
    config = peft_config.parse(reading.read_json(file, BaseError, "copy or download it again"), str(file))
    pickled = folder / PEFT_PICKLED
    file = folder / PEFT_WEIGHTS if not reading.is_file(pickled) or reading.is_file(folder / PEFT_WEIGHTS) else pickled
    header = weights.read_header(file)
    return _parse(weights.load_tensors(file), header.metadata, names, family, lambda _: config, component)
