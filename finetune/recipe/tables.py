"""How a recipe's tables are made: typed, frozen, strict; and tables that choose their own keys by one of them."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MOST_STEPS = 10_000_000
"""of a run: the longest published ones have a few million"""
MOST_PICTURES = 10_000
"""of one call, or for one verdict"""
Positive = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Count = Annotated[int, Field(ge=0, le=MOST_STEPS)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
PictureCount = Annotated[int, Field(ge=0, le=MOST_PICTURES)]
DenoisingSteps = Annotated[int, Field(ge=1, le=10_000)]
Pixels = Annotated[int, Field(ge=16, le=8192)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(ge=0, le=10_000)]
Guidance = Annotated[float, Field(ge=0, le=100)]
"""beyond it pictures are noise, then not finite; people use up to 20"""
NonEmpty = Annotated[str, Field(min_length=1)]
Loose = Field(strict=False)  # TOML has neither paths nor tuples
_T = TypeVar("_T")


def shown(value: object) -> str:
    """A value as TOML writes it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _path(written: object) -> object:
    if written == "":
        raise PydanticCustomError("string_too_short", "must not be empty")
    return written


def _patterns(written: object) -> object:
    several = written if isinstance(written, list | tuple) else [written]
    if not several or not all(isinstance(one, str) and one for one in several):
        raise ValueError("needs the name of a preset, or a list of module name patterns")
    return written if isinstance(written, str) else tuple(several)


def _distinct(several: tuple[_T, ...]) -> tuple[_T, ...]:
    if twice := [one for i, one in enumerate(several) if several.index(one) < i]:
        raise ValueError(f"{shown(twice[0])} is written twice")
    return several


def _outside(written: object) -> object:
    share = isinstance(written, int | float) and not isinstance(written, bool)
    if written != "own_prediction" and not (share and 0 <= float(str(written)) <= 1):
        raise ValueError(f'needs a share from 0 to 1, or "own_prediction", got {shown(written)}')
    return float(str(written)) if share else written


WrittenPath = Annotated[Path, Loose, BeforeValidator(_path)]
Patterns = Annotated[str | tuple[str, ...], BeforeValidator(_patterns)]
Outside = Annotated[float | Literal["own_prediction"], BeforeValidator(_outside)]
Distinct = AfterValidator(_distinct)


class Table(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def of(cls, other: "Table", **known: object) -> Self:
        """What was set of another table, and what is known besides, checked as this one."""
        return cls.model_validate({name: getattr(other, name) for name in other.model_fields_set} | known)


@dataclass(frozen=True)
class Tagged:
    """Marks a union of tables of which one key chooses: `Annotated[LoRA | FullWeights, Tagged("method")]`.

    The first is meant when the key is left out. A word that names none is held against the nearest, so that its table's
    other keys are checked all the same.
    """

    key: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        tables = {self.of(table): table for table in get_args(source)}
        default = next(iter(tables))

        def chosen(raw: Any) -> str:
            written = raw.get(self.key, default) if isinstance(raw, dict) else getattr(raw, self.key, default)
            near = difflib.get_close_matches(str(written), tables, 1)
            return str(written) if written in list(tables) else near[0] if near else default

        choices = {tag: handler.generate_schema(table) for tag, table in tables.items()}
        return core_schema.tagged_union_schema(dict(choices), discriminator=chosen)

    def of(self, table: type[BaseModel]) -> str:
        """The word that chooses a table."""
        return str(table.model_fields[self.key].default)


def members(field: FieldInfo) -> tuple[type[Table], ...]:
    """The tables that a field may hold; none when it holds a value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Table))


def tagged(field: FieldInfo) -> Tagged | None:
    """How a field's table is chosen, if it is one of several."""
    return next((mark for mark in field.metadata if isinstance(mark, Tagged)), None)


def value(table: BaseModel, key: str) -> object:
    """The value at a key path; None where the chosen table has no such key."""
    found: object = table
    for part in key.split("."):
        found = getattr(found, part) if isinstance(found, BaseModel) and part in type(found).model_fields else None
    return found


def follows(table: BaseModel, key: str) -> bool:
    """Whether the value at a key path was left open, and follows from another key beside it."""
    path, _, last = key.rpartition(".")
    owner = value(table, path) if path else table
    if not isinstance(owner, Table) or last not in type(owner).model_fields or last in owner.model_fields_set:
        return False
    return bool(type(owner).model_fields[last].default_factory_takes_validated_data)


def written(table: Table) -> dict[str, Any]:
    """What was set of a table, as it was given, with the words that choose tables; the rest follows from it."""
    raw: dict[str, Any] = {}
    for name in type(table).model_fields:
        inner = getattr(table, name)
        if isinstance(inner, Table):
            raw[name] = written(inner)
            if mark := tagged(type(table).model_fields[name]):
                raw[name][mark.key] = getattr(inner, mark.key)
        elif name in table.model_fields_set:
            raw[name] = inner
    return raw
