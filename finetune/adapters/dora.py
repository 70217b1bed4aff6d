"""DoRA: a weight's direction is changed as by LoRA, its rows' lengths by a magnitude vector (arXiv:2402.09353).

W' = m (W + s up down) / |W + s up down|, |.| over each row: the change depends on the base's weight.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.adapters import lora
from finetune.adapters.change import Change
from finetune.adapters.lora import Lora, copied, place, product, widened
from finetune.errors import RecipeError
from finetune.families.quantised import dense

TITLE = "DoRA"
ROLES: frozenset[str] = frozenset({"down", "up", "magnitude"})
STARTS_AT_ZERO: tuple[str, ...] = ("lora_B",)
PEFT: Mapping[str, Any] = {"use_dora": True}
_PEFT_KEYS = {".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude"}
KEYS: Mapping[str, Mapping[str, str]] = {
    "kohya": {**lora.KEYS["kohya"], ".dora_scale": "magnitude"},
    "diffusers": {**lora.KEYS["diffusers"], **_PEFT_KEYS},
    "peft": {**lora.KEYS["peft"], **_PEFT_KEYS},
}


class Dora(NamedTuple):
    """One module's change. magnitude: (out,), of a convolution (1, out, 1, 1), float32."""

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor

    @property
    def kind(self) -> str:
        return "dora"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def tensors(self) -> dict[str, Tensor]:
        return {"down": self.down, "up": self.up, "magnitude": self.magnitude}

    def delta(self, weight: Tensor) -> Tensor:
        before = weight.double().flatten(1)
        turned = before + self.scale * product(self.down, self.up)
        lengths = torch.linalg.vector_norm(turned, dim=1, keepdim=True)
        change: Tensor = turned * (self.magnitude.double().view(-1, 1) / lengths) - before
        return change.reshape(self.shape).float()

    def norm(self, weight: Tensor) -> float:
        return float(self.delta(weight).double().norm())

    def is_zero(self) -> bool:
        return False

    def of_lora(self) -> bool:
        return False

    def padded(self, rank: int) -> "Dora":
        return Dora(*widened(self.down, self.up, self.scale, rank), 1.0, self.magnitude)

    def rows(self, start: int, stop: int | None) -> "Dora":
        return self._replace(up=self.up[start:stop].clone(), magnitude=self.magnitude.flatten()[start:stop].clone())


def has(layer: Any, adapter: str) -> bool:
    return adapter in layer.lora_magnitude_vector


def prepare(layer: Any) -> None:
    weight, vector = dense(layer.get_base_layer().weight), layer.lora_magnitude_vector["default"]
    # peft measures rows in the base's dtype: a bf16 base would begin changed, and be trained at rounded lengths
    vector.get_weight_norm = _lengths_with
    if not weight.is_meta:
        vector.weight.data = _lengths(weight.float())


def of_layer(layer: Any, adapter: str) -> Dora:
    return Dora(*lora.of_layer(layer, adapter), copied(layer.lora_magnitude_vector[adapter].weight))


def of_tensors(tensors: Mapping[str, Tensor], scale: float) -> "Dora | str":
    change, magnitude = lora.of_tensors(tensors, scale), tensors["magnitude"].float()
    if isinstance(change, str):
        return change
    if magnitude.shape[0] == 1 and magnitude.ndim == 2 and change.shape[0] != 1:
        return "DoRA magnitudes of the weight's columns, as older LyCORIS has them, are not read"
    if magnitude.numel() != change.shape[0]:
        return f"{magnitude.numel()} magnitudes for {change.shape[0]} rows"
    return Dora(*change, magnitude.view(1, -1, 1, 1) if len(change.shape) == 4 else magnitude.flatten())


def put(layer: Any, change: Change) -> None:
    weight, magnitude = dense(layer.get_base_layer().weight), layer.lora_magnitude_vector["default"].weight
    if isinstance(change, Dora):
        found = change.magnitude
    elif isinstance(change, Lora):
        after = weight.double().cpu() + lora.delta(change).reshape(weight.shape).double()
        found = _lengths(after)
    else:
        raise RecipeError(
            f"adapter.init_from: it holds {change.kind} changes, which DoRA cannot go on from", "LoRA can"
        )
    place(layer, change.down, change.up, change.scale)
    magnitude.copy_(found.reshape(magnitude.shape))


def _lengths_with(weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None) -> Tensor:
    """What peft divides the magnitudes by."""
    return _lengths(weight.float() + scaling * lora_weight.float())


def _lengths(weight: Tensor) -> Tensor:
    """Of a weight's rows, in peft's shape."""
    found: Tensor
    if weight.ndim == 2:
        found = torch.linalg.norm(weight, dim=1)
    else:
        found = weight.norm(p=2, dim=tuple(range(1, weight.ndim)), keepdim=True).transpose(1, 0)
    return found
