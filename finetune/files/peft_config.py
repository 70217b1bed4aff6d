"""How PEFT scales each module: its configuration, in adapter_config.json or in diffusers' lora_adapter_metadata."""

import json
import math
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from finetune.adapters.lora import Modules
from finetune.errors import BaseError

T = TypeVar("T")


class PeftConfig(NamedTuple):
    r: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    rslora: bool

    def scale(self, path: str, rank: int) -> float:
        """Of the module at `path`, arXiv:2106.09685, or arXiv:2312.03732 for rsLoRA."""
        alpha = _matched(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def rank(self, path: str) -> int:
        return _matched(self.rank_pattern, path, self.r)


def parse(table: Mapping[str, object], where: str) -> PeftConfig:
    """adapter_config.json's table.

    Raises:
        BaseError: no LoRA, or not a configuration.
    """
    if table.get("peft_type", "LORA") != "LORA":
        raise BaseError(f"{where}: a {table.get('peft_type')} adapter", "only LoRA is read")
    if table.get("use_dora"):
        raise BaseError(f"{where}: a DoRA adapter (use_dora)", "merge it with PEFT; DoRA is not read as LoRA")
    r = table.get("r")
    return PeftConfig(
        r=int(number(r, where)),
        alpha=number(table.get("lora_alpha", r), where),
        rank_pattern={k: int(n) for k, n in _patterns(table, "rank_pattern", where).items()},
        alpha_pattern=_patterns(table, "alpha_pattern", where),
        rslora=bool(table.get("use_rslora")),
    )


def parse_flat(text: str, where: str) -> dict[str, PeftConfig]:
    """component -> configuration, from flat keys as `unet.r`."""
    tables: dict[str, dict[str, object]] = {}
    for key, value in json_object(text, where).items():
        component, _, field = key.partition(".")
        tables.setdefault(component, {})[field] = value
    return {component: parse(table, where) for component, table in tables.items()}


def describe(modules: Modules) -> dict[str, object]:
    """The table that gives each module (by its path inside the component) its own rank and scale back."""
    first = next(iter(modules.values()))
    alphas = {path: lora.scale * lora.rank for path, lora in modules.items()}
    alpha = first.scale * first.rank
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "rank_pattern": {f"^{p}$": lora.rank for p, lora in modules.items() if lora.rank != first.rank},
        "alpha_pattern": {f"^{p}$": a for p, a in alphas.items() if a != alpha},
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "inference_mode": True,
    }


def json_object(text: str, where: str) -> dict[str, object]:
    """Raises BaseError when the text is no JSON object."""
    try:
        return _table(json.loads(text))
    except ValueError as e:
        raise BaseError(f"{where} is not JSON: {e}", "copy or download it again") from e


def number(found: object, where: str) -> float:
    """Raises BaseError when it is none."""
    if not isinstance(found, int | float):
        raise BaseError(f"{where}: {found!r} where a number belongs", "copy or download it again")
    return float(found)


def _patterns(table: Mapping[str, object], key: str, where: str) -> dict[str, float]:
    found = {pattern: number(value, where) for pattern, value in _table(table.get(key)).items()}
    for pattern in found:
        try:
            re.compile(pattern)
        except re.error as e:
            raise BaseError(f"{where}: {key} {pattern!r} is no pattern: {e}", "get the file again") from e
    return found


def _matched(patterns: Mapping[str, T], path: str, default: T) -> T:
    """PEFT's rule: a pattern matches a whole path or its ending at a dot; the first wins."""
    paths = (path, path.removeprefix("text_model."))  # transformers >= 5.6 names the text encoder without the level
    return next((v for k, v in patterns.items() if any(re.match(rf"(.*\.)?({k})$", p) for p in paths)), default)


def _table(value: object) -> dict[str, object]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}
