"""What a recipe says that came with an adapter: text of others, read key by key, each as the type it must have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from finetune import reading
from finetune.errors import BaseError

_T = TypeVar("_T")
_HINT = "name an adapter file by itself, with `base` and `data`"


@dataclass(frozen=True)
class SaidRecipe:
    """A recipe as it was resolved, such as a run or an adapter file holds; empty where nothing is said."""

    tables: Mapping[str, Any]
    where: str

    def value(self, key: str, kind: type[_T]) -> _T | None:
        """At a key such as data.resolution; None: nothing is said.

        Raises:
            BaseError: it is of another type.
        """
        found: Any = self.tables
        for name in key.split("."):
            if not isinstance(found, Mapping):
                raise self._wrong(key)
            found = found.get(name)
            if found is None:
                return None
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise self._wrong(key)
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty: nothing is said. Raises BaseError."""
        found = self.value(key, list) or []
        if not all(isinstance(one, str) for one in found):
            raise self._wrong(key)
        return tuple(found)

    def _wrong(self, key: str) -> BaseError:
        return BaseError(f"{self.where}: {key} is no such value as a recipe has there", _HINT)


def said_in(text: str, where: str) -> SaidRecipe:
    """Raises BaseError: it is no TOML."""
    return SaidRecipe(reading.toml_table(text, where, BaseError, _HINT), where)
