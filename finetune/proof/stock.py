"""The file in stock diffusers: loaded as users load it, and what its layers then apply."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.adapters.attach import known_in_full, read_layer
from finetune.adapters.change import AdapterState, canonical_name
from finetune.families.base import Family, adaptable
from finetune.families.quantised import dense
from finetune.proof.applied import TOLERANCE, delta_of, difference
from finetune.proof.chatter import quiet
from finetune.shortage import is_shortage

_REFUSALS = (ValueError, KeyError, RuntimeError, TypeError, IndexError, AttributeError, AssertionError)
"""of diffusers' converters: a width that is no published model's fails an assertion"""


_ONE_ALPHA = (
    ": it reads one alpha for a whole file, this one has several; "
    "exported again in the layout `universal` it is right everywhere"
)


def load_stock(family: Family, file: Path) -> tuple[str, list[str]]:
    """Put the file into the family's modules, as users do. Returns how it was refused, and what was warned of."""
    with quiet() as warned:
        try:
            pipeline = family.pipeline()
            with known_in_full(family.parts.loaded().values()):
                pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="verified")
        except _REFUSALS as e:
            if is_shortage(e):
                raise
            said = str(e).strip()[:200] or "it is of no width that it knows"
            return f"stock diffusers refuses the file: {type(e).__name__}: {said}", warned
    unfilled = sum(p.is_meta for name in adaptable(family) for p in _parameters(family, name))
    if unfilled:
        return f"stock diffusers finds no values in it for {unfilled} of its tensors, and cannot run", warned
    return "", warned


def _parameters(family: Family, name: str) -> Iterator[torch.nn.Parameter]:
    """Of a part, where it is in memory."""
    loaded = family.parts.loaded()
    return loaded[name].parameters() if name in loaded else iter(())


def stock_differences(
    family: Family, modules: AdapterState, tolerance: float = TOLERANCE[torch.float32]
) -> tuple[list[str], float]:
    """Modules where what PEFT's layers in the pipeline apply is not what the file says, and the worst difference."""
    left, wrong, worst = dict(modules), [], 0.0
    loaded = family.parts.loaded()
    for component, whole in ((name, loaded[name]) for name in adaptable(family) if name in loaded):
        for path, layer in whole.named_modules():
            if "verified" in getattr(layer, "lora_A", {}):
                name = canonical_name(component, path)
                change = _stock_delta(layer)
                ours = left.pop(name, None)
                said = delta_of(family, name, ours).reshape(change.shape) if ours else torch.zeros_like(change)
                off = difference(change, said)
                worst = max(worst, off)
                wrong += [name] if off > tolerance else []
    lost = [name for name, change in left.items() if not change.is_zero()]
    return sorted(wrong + lost), 1.0 if lost else worst


def _stock_delta(layer: Any) -> Tensor:
    """What PEFT's layer does to its weight: by PEFT's own reckoning where it has one."""
    read = read_layer(layer, "verified")
    if read is None or read.of_lora():
        own: Tensor = layer.get_delta_weight("verified").cpu()
        return own
    return read.delta(dense(layer.get_base_layer().weight).float().cpu().reshape(read.shape))


def told_differently(wrong: list[str], modules: AdapterState) -> str:
    several = len({change.scale * change.rank for change in modules.values()}) > 1
    told = f"stock diffusers applies {len(wrong)} of {len(modules)} modules differently, {wrong[0]} first"
    return told + (_ONE_ALPHA if several else "")
