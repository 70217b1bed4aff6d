"""What an adapter does to one module, whatever method trained it, and what modules are called.

Shapes: r rank, k kernel. Linear: down (r, in), up (out, r); convolution: down (r, in, k, k), up (out, r, 1, 1).
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol, Self

from torch import Tensor, nn


class Change(Protocol):
    """The change of one module's weight, float32, on the CPU."""

    @property
    def kind(self) -> str:
        """The method's name: lora, dora."""
        ...

    @property
    def rank(self) -> int: ...

    @property
    def scale(self) -> float:
        """alpha / rank, or what else the product of up and down is multiplied by."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight it changes, (out, in) or (out, in, k, k)."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """role -> tensor: all that was trained, as it was trained."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """The dense change of the base's weight, of the change's shape, computed in float64, float32."""
        ...

    def norm(self, weight: Tensor) -> float:
        """The Frobenius norm of that."""
        ...

    def is_zero(self) -> bool:
        """It changes no weight at all."""
        ...

    def of_lora(self) -> bool:
        """It is a low-rank sum by itself, whatever the base's weight is: what every reader of LoRA files applies."""
        ...

    def padded(self, rank: int) -> Self:
        """The same change at scale 1 and a larger rank; up is float64, to be cast last."""
        ...

    def rows(self, start: int, stop: int | None) -> Self:
        """The change of these rows of the weight."""
        ...


AdapterState = dict[str, Change]
"""canonical module name -> its change. A name is the component, a dot and the module's path in diffusers' own naming; a
text encoder's path always has its `text_model` level, which transformers >= 5.6 dropped but no reader did"""


class Method(Protocol):
    """A way to train changes: a module of this folder.

    KEYS: layout of files -> how a tensor's key ends there -> the tensor's role. ROLES: the roles that a change of this
    method has, and no other method's. STARTS_AT_ZERO: parameters that are zero at first; until they move, only they
    have a gradient. PEFT: what its LoraConfig is told.
    """

    TITLE: str
    KEYS: Mapping[str, Mapping[str, str]]
    ROLES: frozenset[str]
    STARTS_AT_ZERO: tuple[str, ...]
    PEFT: Mapping[str, Any]

    def has(self, layer: Any, adapter: str) -> bool:
        """Whether one of PEFT's layers carries that adapter by this method."""
        ...

    def prepare(self, layer: Any) -> None:
        """Set a layer's parameters that follow from the base's weight."""
        ...

    def of_layer(self, layer: Any, adapter: str) -> Change:
        """Out of one of PEFT's layers."""
        ...

    def of_tensors(self, tensors: Mapping[str, Tensor], scale: float) -> Change | str:
        """Out of a file's, by role; or what is wrong with them."""
        ...

    def put(self, layer: Any, change: Change) -> None:
        """Give a layer this change, exactly; the layer's rank is no smaller. Raises RecipeError when it cannot."""
        ...


def canonical_name(component: str, path: str) -> str:
    """The canonical name of a module at `path` inside a component in memory."""
    level = "text_model." if component.startswith("text_encoder") and not path.startswith("text_model.") else ""
    return f"{component}.{level}{path}"


def matches(name: str, pattern: str) -> bool:
    """A target's pattern is a shell pattern of a module's path, or of the end of it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def live_name(name: str, paths: Collection[str]) -> str:
    """The path, inside its component, of the module of that canonical name, given the component's module paths."""
    path = name.partition(".")[2]
    return path if path in paths else path.removeprefix("text_model.")


def target_shapes(components: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """canonical name -> weight shape of every place in a base that can hold a change."""
    return {
        canonical_name(component, path): _shape(module)
        for component, whole in components.items()
        for path, module in whole.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _shape(module: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):  # whose weight may be packed in 4 bits
        return module.out_features, module.in_features
    return tuple(module.weight.shape)
