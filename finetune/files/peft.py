"""PEFT directories, the lossless master; and how PEFT scales each module: adapter_config.json, or the same table in
diffusers' lora_adapter_metadata."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor

from finetune import reading
from finetune import tensors as weights
from finetune.adapters.change import AdapterState
from finetune.adapters.methods import METHODS
from finetune.errors import BaseError, VerifyError
from finetune.files import peft_fields
from finetune.files.diffusers import keyed
from finetune.files.names import peft_path, split
from finetune.files.patterns import ModulePatterns, check_pattern, patterns

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_EXPRESSIONS = ("target_modules", "exclude_modules", "layers_pattern")
"""keys that hold a list of names, or one regular expression"""
_AGAIN = "copy or download it again"
T = TypeVar("T")


class PeftConfig(NamedTuple):
    r: int
    alpha: float
    rank_pattern: ModulePatterns[int]
    alpha_pattern: ModulePatterns[float]
    rslora: bool
    kind: str = "lora"
    """the method"""
    notes: tuple[str, ...] = ()
    """fields that say something nobody here knows"""

    def scale(self, path: str, rank: int) -> float:
        """Of the module at `path`, arXiv:2106.09685, or arXiv:2312.03732 for rsLoRA."""
        alpha = _matched(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def rank(self, path: str) -> int:
        return _matched(self.rank_pattern, path, self.r)


def parse(table: Mapping[str, object], where: str) -> PeftConfig:
    """adapter_config.json's table.

    Raises:
        BaseError: not LoRA or a kind of it, or not a configuration; or a field that changes what the tensors mean and
            is not read is set.
    """
    if table.get("peft_type", "LORA") != "LORA":
        raise BaseError(f"{where}: a {table.get('peft_type')} adapter", "only LoRA is read")
    notes = peft_fields.check_fields(table, where)
    r = table.get("r")
    return PeftConfig(
        r=int(number(r, where)),
        alpha=number(table.get("lora_alpha", r), where),
        rank_pattern=patterns(
            {k: int(n) for k, n in _numbers(table, "rank_pattern", where).items()}, f"{where}: rank_pattern"
        ),
        alpha_pattern=patterns(_numbers(table, "alpha_pattern", where), f"{where}: alpha_pattern"),
        rslora=bool(table.get("use_rslora")),
        kind=_kind(table, where),
        notes=notes,
    )


def parse_flat(text: str, where: str) -> dict[str, PeftConfig]:
    """component -> configuration, from flat keys as `unet.r`."""
    tables: dict[str, dict[str, object]] = {}
    for key, value in json_object(text, where).items():
        component, _, field = key.partition(".")
        tables.setdefault(component, {})[field] = value
    for fields in tables.values():
        for key in _EXPRESSIONS:  # diffusers hands them to PEFT as they are
            if isinstance(pattern := fields.get(key), str):
                check_pattern(pattern, f"{where}: {key}")
    return {component: parse(table, where) for component, table in tables.items()}


def write_peft(modules: AdapterState, folder: Path, metadata: Mapping[str, str]) -> None:
    """The lossless master: folder/COMPONENT, each what `PeftModel.from_pretrained` opens, true ranks and alphas."""
    for component in dict.fromkeys(name.partition(".")[0] for name in modules):
        inside = {name: change for name, change in modules.items() if name.startswith(f"{component}.")}
        (folder / component).mkdir(parents=True, exist_ok=True)
        weights.write_tensors(peft_tensors(inside), folder / component / PEFT_WEIGHTS, metadata)
        config = json.dumps(peft_config(inside), indent=2)
        weights.write_bytes(config.encode(), folder / component / PEFT_CONFIG)


def peft_tensors(modules: AdapterState) -> dict[str, Tensor]:
    """Of one component. PEFT does not translate names, so a text encoder's are those of the transformers installed."""
    return {
        f"base_model.model.{peft_path(name)}{ending}": tensor.float()
        for name, change in sorted(modules.items())
        for ending, tensor in keyed(change, "peft").items()
    }


def parameter_key(name: str) -> str:
    """A trained parameter's name in its component -> its key in the component's PEFT file."""
    told = split(name)
    if told is None:
        raise ValueError(f"{name} is of no adapter")
    raw, role, _ = told
    endings = (ending for method in METHODS.values() for ending, of in method.KEYS["peft"].items() if of == role)
    return f"base_model.model.{raw}{next(endings)}"


def peft_config(modules: AdapterState) -> dict[str, object]:
    """adapter_config.json of one component's changes: gives each module its own rank and scale back.

    Raises:
        VerifyError: changes of several methods, which one configuration cannot tell apart.
    """
    inside = {peft_path(name): change for name, change in sorted(modules.items())}
    kinds = sorted({change.kind for change in inside.values()})
    if len(kinds) > 1:
        raise VerifyError(f"changes of {' and '.join(kinds)} in one component", "export them one by one")
    first = next(iter(inside.values()))
    alphas = {path: change.scale * change.rank for path, change in inside.items()}
    alpha = first.scale * first.rank
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": alpha,
        "target_modules": list(inside),
        "rank_pattern": {f"^{p}$": change.rank for p, change in inside.items() if change.rank != first.rank},
        "alpha_pattern": {f"^{p}$": a for p, a in alphas.items() if a != alpha},
        "use_rslora": False,
        "use_dora": False,
        **METHODS[first.kind].PEFT,
        "bias": "none",
        "inference_mode": True,
    }


def json_object(text: str, where: str) -> dict[str, object]:
    """Raises BaseError when the text is no JSON object."""
    return reading.json_table(text, where, BaseError, _AGAIN)


def number(found: object, where: str) -> float:
    """Raises BaseError when it is none, or not a finite one."""
    return reading.finite_number(found, where, BaseError, _AGAIN)


def _kind(table: Mapping[str, object], where: str) -> str:
    told = [(name, method.PEFT) for name, method in METHODS.items() if method.PEFT]
    found = next((name for name, flags in told if all(table.get(k) == v for k, v in flags.items())), "lora")
    if table.get("use_dora") and found == "lora":
        raise BaseError(f"{where}: a DoRA adapter (use_dora)", "merge it with PEFT; DoRA is not read as LoRA")
    return found


def _numbers(table: Mapping[str, object], key: str, where: str) -> dict[str, float]:
    return {pattern: number(value, where) for pattern, value in _table(table.get(key)).items()}


def _matched(table: ModulePatterns[T], path: str, default: T) -> T:
    """transformers >= 5.6 names the text encoder without the level text_model."""
    return table.value(path, table.value(path.removeprefix("text_model."), default))


def _table(value: object) -> dict[str, object]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}
