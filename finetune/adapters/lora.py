"""LoRA: a weight's change is a product of two low-rank matrices (arXiv:2106.09685); for convolutions, LoCon."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.adapters.change import Change
from finetune.errors import RecipeError
from finetune.ranks import whole

TITLE = "LoRA"
ROLES: frozenset[str] = frozenset({"down", "up"})
STARTS_AT_ZERO: tuple[str, ...] = ("lora_B",)
PEFT: Mapping[str, Any] = {}
KEYS: Mapping[str, Mapping[str, str]] = {
    "kohya": {".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid", ".alpha": "alpha"},
    "diffusers": {".lora_A.weight": "down", ".lora_B.weight": "up"},
    "peft": {".lora_A.weight": "down", ".lora_B.weight": "up"},
    "diffusers-old": {
        ".lora.down.weight": "down", ".lora.up.weight": "up",
        ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
        "_lora.down.weight": "down", "_lora.up.weight": "up",
    },
}  # fmt: skip


class Lora(NamedTuple):
    """One module's change: scale * up @ down, float32."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def kind(self) -> str:
        return "lora"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def tensors(self) -> dict[str, Tensor]:
        return {"down": self.down, "up": self.up}

    def delta(self, weight: Tensor) -> Tensor:
        return delta(self)

    def norm(self, weight: Tensor) -> float:
        return norm(self)

    def is_zero(self) -> bool:
        return not norm(self)

    def of_lora(self) -> bool:
        return True

    def padded(self, rank: int) -> "Lora":
        return Lora(*widened(self.down, self.up, self.scale, rank), 1.0)

    def rows(self, start: int, stop: int | None) -> "Lora":
        return self._replace(up=self.up[start:stop].clone())


def delta(lora: Lora) -> Tensor:
    """The dense change of the weight, (out, in) or (out, in, k, k), computed in float64, float32."""
    return (product(lora.down, lora.up) * lora.scale).reshape(lora.shape).float()


def product(down: Tensor, up: Tensor) -> Tensor:
    """up @ down, (out, in * k * k), float64."""
    return up.double().flatten(1) @ down.double().flatten(1)


def subtract(lora: Lora, other: Lora) -> Lora:
    """The change without another one: of both ranks together."""
    up = torch.cat([lora.up * lora.scale, other.up * -other.scale], 1)
    return Lora(torch.cat([lora.down, other.down]), up, 1.0)


def norm(lora: Lora) -> float:
    """The Frobenius norm of the dense change, without making it: |UD|^2 = <U'U, DD'>."""
    up, down = lora.up.double().flatten(1), lora.down.double().flatten(1)
    return abs(lora.scale) * float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


def widened(down: Tensor, up: Tensor, scale: float, rank: int) -> tuple[Tensor, Tensor]:
    """down and up of the same product times scale, at that rank; up is float64."""
    whole, missing = up.double() * scale, rank - down.shape[0]
    down = torch.cat([down, down.new_zeros(missing, *down.shape[1:])])
    return down, torch.cat([whole, whole.new_zeros(len(whole), missing, *whole.shape[2:])], dim=1)


def has(layer: Any, adapter: str) -> bool:
    return adapter in layer.lora_A


def prepare(layer: Any) -> None:
    """Nothing follows from the weight."""


def of_layer(layer: Any, adapter: str) -> Lora:
    return Lora(
        copied(layer.lora_A[adapter].weight), copied(layer.lora_B[adapter].weight), float(layer.scaling[adapter])
    )


def of_tensors(tensors: Mapping[str, Tensor], scale: float) -> "Lora | str":
    down, up = tensors["down"].float(), tensors["up"].float()
    if "mid" in tensors:  # Tucker: k x k between two 1 x 1, the same as k x k then 1 x 1
        down = torch.einsum("ijhw,jn->inhw", tensors["mid"].float(), down.flatten(1))
    fits = down.ndim in (2, 4) and up.ndim == down.ndim and up.shape[1] == down.shape[0] and up.shape[2:].numel() == 1
    if not fits or not down.numel() or not up.numel():
        return f"down {tuple(down.shape)} and up {tuple(up.shape)} do not fit each other"
    return Lora(down, up, scale)


def put(layer: Any, change: Change) -> None:
    if not isinstance(change, Lora):
        raise RecipeError(
            f"adapter.init_from: it holds {change.kind} changes, which LoRA cannot go on from",
            f'adapter.method = "{change.kind}"',
        )
    place(layer, change.down, change.up, change.scale)


def place(layer: Any, down: Tensor, up: Tensor, scale: float) -> None:
    """Into the first ranks of a layer whose own scale may be another."""
    a, b, own = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    rank = len(down)
    a[:rank] = down.reshape(rank, *a.shape[1:]).to(a)
    b[:, :rank] = (up * (scale / own)).reshape(len(b), rank, *b.shape[2:]).to(b)


def copied(weight: Any) -> Tensor:
    """Float32, on the CPU; all of it, where it is spread over ranks."""
    found: Tensor = whole(weight.detach()).float().cpu().clone()
    return found
