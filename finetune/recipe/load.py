"""Recipes read and written: TOML, overrides, and where each value came from. Every problem is reported at once."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from finetune import reading
from finetune import resources as shipped
from finetune.errors import Action, RecipeError, action
from finetune.recipe import rules
from finetune.recipe.compose import parsed, whole_text
from finetune.recipe.explain import sentences
from finetune.recipe.schema import AnyOptimizer, Recipe, Validation
from finetune.recipe.tables import Tagged, written

R = TypeVar("R", bound=Recipe)


RENAMED = {"objective.density": "objective.timestep_density", "objective.logit_deviation": "objective.logit_std"}
"""keys that are called otherwise in this version: the old name is read for one version, with a notice"""
RENAMED_VALUES = {("prior.mode", "self"): "own_prediction"}


class Loaded(NamedTuple):
    recipe: Recipe
    sources: dict[str, str]
    """key path -> "file" or "override"; every other value is a default"""
    origin: Path
    notices: tuple[str, ...] = ()
    """what is called otherwise by now"""
    file: Mapping[str, object] = MappingProxyType({})
    """key path -> value, as the file has it, before any override; empty when the recipe was made in Python"""


def load(path: Path, overrides: Sequence[str] = (), edits: Mapping[str, object] = MappingProxyType({})) -> Loaded:
    """Read a recipe (a file, or the name of a shipped one), then apply edits (key path -> value) and then
    `table.key=value` overrides.

    Raises:
        RecipeError: names every wrong key and value at once.
    """
    origin = find_recipe(path)
    raw = _tables(origin)
    file = _leaves(raw)
    problems: list[str] = []
    notices = _renew(raw)
    overridden = [_set(raw, key, value, problems) for key, value in edits.items()]
    overridden += [_override(raw, item, problems) for item in overrides]
    for key, rival in (("train.steps", "epochs"), ("train.epochs", "steps")):
        if key in overridden and f"train.{rival}" not in overridden and isinstance(raw["train"], dict):
            raw["train"].pop(rival, None)  # the nearer word wins; two overrides contradict each other
    notices += _renew(raw)
    sources = {key: "override" if any(_within(key, w) for w in overridden) else "file" for key, _ in rules.leaves(raw)}
    problems += rules.conflicts(raw)
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as e:
        problems += sentences(e)
    if problems or recipe is None:
        raise _refusal(origin, problems, *_where_to_mend(origin, overrides))
    return Loaded(recipe, sources, origin, tuple(dict.fromkeys(notices)), file)


def written_in(path: Path) -> dict[str, object]:
    """key path -> value of all that a recipe file says itself; nothing is checked.

    Raises:
        RecipeError: there is no such file, or it is no TOML.
    """
    return _leaves(_tables(find_recipe(path)))


def _tables(origin: Path) -> dict[str, Any]:
    return parsed(origin, whole_text(origin))


def _leaves(raw: dict[str, Any]) -> dict[str, object]:
    """As JSON has them, apart from the tables."""
    renewed: dict[str, Any] = json.loads(json.dumps(raw, default=str))
    _renew(renewed)
    return dict(rules.leaves(renewed))


def find_recipe(path: Path) -> Path:
    """A file as it is, or the shipped recipe of that name.

    Raises:
        RecipeError: neither exists.
    """
    if reading.is_file(path):
        return path
    if reading.is_dir(path):
        inside = sorted(path.glob("*.toml"))
        raise RecipeError(f"{path} is a folder, not a recipe", *_perhaps(inside))
    names = {p.stem: p for p in sorted(shipped.RECIPES.glob("*.toml"))}
    if str(path) in names:
        return names[str(path)]
    near = difflib.get_close_matches(path.stem, names, 1)
    raise RecipeError(f"no recipe {path}: not a file, not a shipped recipe", *_perhaps(near))


def _perhaps(near: Sequence[object]) -> tuple[str, Action | None]:
    """What was meant; else where the shipped recipes are listed."""
    return (f"did you mean {near[0]}?", None) if near else ("see the shipped ones", action("recipes list"))


def replace(recipe: R, **changes: object) -> R:
    """The recipe with other values, checked as if they had been written: `replace(r, train__steps=3)` sets train.steps.

    Raises:
        RecipeError: a key that there is not, or a value that it cannot have.
    """
    raw = written(recipe)
    for key, new in changes.items():
        *tables, last = key.split("__")
        table = raw
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = new
    _renew(raw)
    try:
        return type(recipe).model_validate(raw)
    except ValidationError as e:
        raise _refusal("recipe", sentences(e, type(recipe)), "docs/recipes.md lists every key and its values") from e


def rewritten(resolved: Recipe) -> Recipe:
    """A resolved recipe as a user would write it, to repeat the run or to change it."""
    return Recipe.model_validate(written(resolved))


def optimizer(name: str = "adamw", **options: object) -> AnyOptimizer:
    """The table of an optimizer, by its name."""
    return TypeAdapter[AnyOptimizer](Annotated[AnyOptimizer, Tagged("name")]).validate_python({"name": name, **options})


def dumps(recipe: Recipe) -> str:
    """TOML that `load` reads back to the same recipe; settings that are off or have no effect are left out."""
    import tomlkit

    tables = recipe.model_dump(mode="json", exclude_none=True)
    for key, _ in rules.idle(tables):
        table, _, name = key.partition(".")
        del tables[table][name]
    if recipe.validation == Validation():
        del tables["validation"]["every"]
    if not tables["adapter"].get("ranks"):
        tables["adapter"].pop("ranks", None)
    if recipe.train.epochs is not None:
        tables["train"].pop("steps", None)  # counted from the epochs, whose last step may be a short one
    for content in tables.values():
        for name, value in content.items() if isinstance(content, dict) else ():
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                # parsed at once: each `append` of tomlkit's takes as long as the array is
                content[name] = tomlkit.array(f"[{', '.join(tomlkit.item(one).as_string() for one in value)}]")
    return tomlkit.dumps(tables)


def _where_to_mend(origin: Path, overrides: Sequence[str]) -> tuple[str, Action | None]:
    """The recipe in hand, or the override that changed it."""
    if shipped.RECIPES in origin.parents:
        return "correct the override; see the recipe that it changes", action("recipes show", name=origin.stem)
    where = f"{origin}{' or the override' if overrides else ''}"
    return f"correct {where}; docs/recipes.md lists every key and its values", None


def _refusal(origin: Path | str, problems: Sequence[str], hint: str, step: Action | None = None) -> RecipeError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return RecipeError(f"{origin}: {count}\n  " + "\n  ".join(problems), hint, step)


def _override(raw: dict[str, Any], item: str, problems: list[str]) -> str:
    """Set one value in the raw tables. Returns its key path, "" when there is none."""
    key, equals, text = item.partition("=")
    key, text = RENAMED.get(key.strip(), key.strip()), text.strip()
    if not equals or not all(key.split(".")) or key.count(".") > reading.DEPTH:
        problems.append(f"override {item!r}: write it as table.key=value")
        return ""
    try:
        read = reading.toml_table(f"x = {text}", "", RecipeError, "")
    except RecipeError:
        read = {"x": text}
    if len(read) > 1:
        problems.append(f"override {key}: more than one value in {text!r}: give each its own")
    return _set(raw, key, read["x"], problems)


def _set(raw: dict[str, Any], key: str, value: object, problems: list[str]) -> str:
    """Set one value in the raw tables. Returns its key path."""
    *tables, last = key.split(".")
    table = raw
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            problems.append(f"override {key}: {name!r} is a value, not a table")
            return key
        table = inner
    table[last] = value
    return key


def _renew(raw: dict[str, Any]) -> list[str]:
    """Give old names their new ones in the tables; a notice for each. One that stands beside the new name is left."""
    notices = []
    for old, new in RENAMED.items():
        name, _, last = old.partition(".")
        table, key = raw.get(name), new.partition(".")[2]
        if isinstance(table, dict) and last in table and key not in table:
            table[key] = table.pop(last)
            notices.append(f"{old} is now called {new}; the old name is read until the next version")
    for (path, old), new in RENAMED_VALUES.items():
        name, _, key = path.partition(".")
        table = raw.get(name)
        if isinstance(table, dict) and table.get(key) == old:
            table[key] = new
            notices.append(f'{path} = "{old}" is now "{new}"; the old word is read until the next version')
    return notices


def _within(key: str, written: str) -> bool:
    """A key path is the written one, lies in the written table, or is the table that holds it."""
    return bool(written) and (f"{key}.".startswith(f"{written}.") or f"{written}.".startswith(f"{key}."))
