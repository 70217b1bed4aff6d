"""The recipe of a run's page: every value, those that are not the usual ones first; and how it is repeated."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune import recipe
from finetune.errors import Action, RecipeError, action
from finetune.recipe.rules import leaves
from finetune.recipe.schema import Recipe
from finetune.recipe.tables import value
from finetune.reporting.history import RECIPE_FILE, History


class Setting(NamedTuple):
    """A value of the recipe; usual: what it is where nobody says it, None where it is worked out."""

    key: str
    shown: str
    usual: str | None


class Settings(NamedTuple):
    own: list[Setting]
    """those that differ from the usual"""
    usual: list[Setting]
    repeat: Action
    """what makes the same run again"""


def settings_of(history: History) -> Settings | None:
    """None: there is no recipe yet, or none that can be read."""
    if not history.recipe:
        return None
    found = [Setting(key, as_written(one), usual) for key, one, usual in _compared(history)]
    same = [one for one in found if one.usual == one.shown]
    folder = history.folder.resolve()
    again = action("train", recipe=folder / RECIPE_FILE, out=f"{folder}-again")
    return Settings([one for one in found if one not in same], same, again)


def as_written(one: object) -> str:
    """As a recipe would have it."""
    return json.dumps(one, ensure_ascii=False, default=str)


def _compared(history: History) -> Iterator[tuple[str, object, str | None]]:
    """(key path, value, the usual value as it is shown)."""
    usual = _usual(history.recipe, history.folder)
    for key, one in leaves(dict(history.recipe)):
        yield key, one, usual.get(key)


def _usual(said: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """key path -> the value that it has where only base, pictures and the choices of tables are said."""
    chosen = {"base": said.get("base"), "data": {"path": said.get("data", {}).get("path")}}
    for table, mark in (("adapter", "method"), ("optimizer", "name"), ("prior", "mode")):
        if mark in said.get(table, {}):
            chosen[table] = {mark: said[table][mark]}
    try:
        bare = Recipe.model_validate(chosen)
        return {key: as_written(_plain(value(bare, key))) for key in recipe.keys() if value(bare, key) is not None}
    except (ValueError, RecipeError):
        return {}


def _plain(one: object) -> object:
    return list(one) if isinstance(one, tuple) else one
