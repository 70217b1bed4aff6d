"""What a number may be, wherever it is given: on the command line, in a call, in a run's file, as in a recipe.

The bounds are those of the recipe's key that means the same, or of `OWN` for what no recipe has.
"""

from functools import cache
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from finetune.errors import InputError
from finetune.recipe.explain import needed
from finetune.recipe.schema import Recipe
from finetune.recipe.tables import MOST_PICTURES, members, shown

_T = TypeVar("_T")
OWN: dict[str, Any] = {
    "count": Annotated[int, Field(ge=1, le=MOST_PICTURES)],
    "gpus": Annotated[int, Field(ge=1, le=4096)],
    "bits": Annotated[int, Field(ge=1, le=32)],
    "timeout_s": Annotated[float, Field(ge=1, le=86_400)],
}
"""count: pictures of a prompt, or for a verdict; bits: of a weight, before it is looked at which are known"""


def check(key: str, given: _T, name: str) -> _T:
    """The number itself. name: the argument that gave it.

    Raises:
        InputError: the recipe's key may not have that value.
    """
    if problem := violation(key, given):
        raise InputError(f"`{name}` {problem}", "give another number")
    return given


def check_pictures(prompts: int, rows: int) -> None:
    """Raises InputError: so many prompts, each so many times, are too many pictures for one call."""
    if prompts * rows > MOST_PICTURES:
        raise InputError(
            f"{prompts:,} prompts, each {rows:,} times, are more than the {MOST_PICTURES:,} pictures of one call",
            "fewer of them, or several calls",
        )


def violation(key: str, given: object) -> str:
    """What is wrong with a value for a key: "must be at most 1000, got 5000"; "": nothing."""
    try:
        _adapter(key).validate_python(given)
    except ValidationError as e:
        return needed(e.errors(include_url=False)[0])
    except OverflowError:  # pydantic makes a float of it
        return f"must be smaller, got {shown(given)}"
    return ""


def is_whole(key: str) -> bool:
    """Whether its number is a whole one."""
    kind = _annotation(key)
    return int in (kind, *get_args(kind), *(inner for one in get_args(kind) for inner in get_args(one)))


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    config = Recipe.model_config
    return TypeAdapter(_annotation(key), config={"strict": config["strict"], "allow_inf_nan": False})


def _annotation(key: str) -> Any:
    if key in OWN:
        return OWN[key]
    field = _field(key)
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _field(key: str) -> FieldInfo:
    table, _, name = key.rpartition(".")
    tables = members(Recipe.model_fields[table]) if table else (Recipe,)
    return next(one.model_fields[name] for one in tables if name in one.model_fields)
