"""What an optimizer is made of: its table of the recipe, how it is built, and what its state takes."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from torch.optim import Optimizer

from finetune import recipe

_Table = TypeVar("_Table", bound=recipe.Optimizer)
Groups = list[dict[str, Any]]
"""a parameter group for each component: `params`, `lr` and `name`"""
Shape = Sequence[int]


class Entry(NamedTuple, Generic[_Table]):
    table: type[_Table]
    build: Callable[[Groups, _Table], Optimizer]
    state_bytes: Callable[[_Table, Sequence[Shape]], int]
    """exact, for parameters of these shapes, after the first step; what parameters share counts once"""
