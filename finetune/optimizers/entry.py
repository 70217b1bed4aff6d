"""What an optimizer is made of: its table of the recipe, how it is built, and what its state takes."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from torch.optim import Optimizer

from finetune import recipe

T = TypeVar("T", bound=recipe.Optimizer)
Groups = list[dict[str, Any]]
"""a parameter group for each component: `params`, `lr` and `name`"""
Shape = Sequence[int]


class Entry(NamedTuple, Generic[T]):
    table: type[T]
    build: Callable[[Groups, T], Optimizer]
    state_bytes: Callable[[T, Sequence[Shape]], int]
    """exact, for parameters of these shapes, after the first step; what parameters share counts once"""
