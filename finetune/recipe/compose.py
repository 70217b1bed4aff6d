"""A recipe that extends others, as one whole text with its comments: `extends = ["goals/product", "bases/flux"]`.

Each is laid over the one before, and the recipe itself over all of them: the nearer word wins.
"""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from finetune import reading
from finetune import resources as shipped
from finetune.errors import RecipeError, action
from finetune.recipe.schema import Recipe
from finetune.recipe.tables import members, tagged

MOST_EXTENDED = 20
"""of recipes that extend each other"""
MAX_BYTES = 1 << 20
"""of a recipe's text; the longest shipped one has 3 KiB"""
Entries = dict[tuple[str, str], list[str]]
"""(table, key) -> its lines: the comments above it, and the value as it was written"""
RIVALS = {("train", "steps"): ("train", "epochs"), ("train", "epochs"): ("train", "steps")}


@dataclass
class Layer:
    """A text in pieces. `head` is the comment that it begins with."""

    head: list[str] = field(default_factory=list)
    entries: Entries = field(default_factory=dict)


def whole_text(path: Path, beneath: tuple[Path, ...] = ()) -> str:
    """The text of a recipe; of one that extends others, theirs and its own in one.

    Raises:
        RecipeError: it is no TOML, or extends what is not there or itself.
    """
    text = _text(path)
    extended = _extended(path, text)
    if reading.real_path(path) in beneath:
        raise RecipeError(f"{path} extends itself, by way of {beneath[-1].name}", "leave it out of `extends` there")
    if len(beneath) == MOST_EXTENDED:
        raise RecipeError(f"{path} is extended by {MOST_EXTENDED} recipes, one by the other", "put some of them in one")
    if not extended:
        return text
    whole = Layer()
    for one in (*extended, path):
        layer = _layer(text if one is path else whole_text(one, (*beneath, reading.real_path(path))))
        whole = Layer(layer.head, _laid_over(whole.entries, layer.entries))
    whole.entries.pop(("", "extends"))
    return _written(whole)


def _text(path: Path) -> str:
    return reading.read_text(path, RecipeError, "check its permissions", MAX_BYTES)


def parsed(path: Path, text: str) -> dict[str, object]:
    """Raises RecipeError with the line that is no TOML."""
    return reading.toml_table(text, str(path), RecipeError, _toml_hint)


def _toml_hint(fault: str) -> str:
    if "Cannot" in fault:
        return "each key, and each [table], may be written once"
    if "backslash" in fault.lower() or "Unescaped" in fault or "hex" in fault:
        return r"in a path write / or \\, or put the text in single quotes"
    return 'key = value, one a line; text in quotes, "so"; true and false in small letters'


def _extended(path: Path, text: str) -> list[Path]:
    """The files that a recipe extends: beside it, or shipped."""
    written = parsed(path, text).get("extends", [])
    names = [written] if isinstance(written, str) else written
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(
            f"{path}: extends needs the name of a recipe, or a list of names", 'extends = ["sdxl-product"]'
        )
    return [_named(path, str(name)) for name in names]


def _named(path: Path, name: str) -> Path:
    places = [folder / f"{name.removesuffix('.toml')}.toml" for folder in (path.parent, shipped.RECIPES)]
    found = next((place for place in places if reading.is_file(place)), None)
    if found is None:
        raise RecipeError(
            f"{path} extends {name!r}: no such file beside it, and no shipped recipe",
            "see the shipped ones",
            action("recipes list"),
        )
    return found


def _layer(text: str) -> Layer:
    """In pieces; each value as it was written, however many lines it has."""
    layer, table, above, value = Layer(), "", list[str](), list[str]()
    for line in text.splitlines():
        bare = line.strip()
        if not value and (not bare or bare.startswith("#")):
            first = not layer.entries and not table and not layer.head
            layer.head = above if first and not bare else layer.head
            above = [*above, line] if bare else []
            continue
        if not layer.entries and not table and not value:
            layer.head, above = layer.head or above, []
        if not value and bare.startswith("["):
            table = bare.strip("[] ")
            continue
        value.append(line)
        if _complete(value):
            place, lines = _place(table, value)
            layer.entries[place], above, value = [*above, *lines], [], []
    return layer


def _complete(lines: list[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return False
    return True


def _place(table: str, lines: list[str]) -> tuple[tuple[str, str], list[str]]:
    """(table, key) and the value's lines; `train.steps = 3` is the same as steps in [train]."""
    key, _, value = lines[0].strip().partition("=")
    inner, _, last = key.strip().rpartition(".") if re.fullmatch(r"[\w.-]+", key.strip()) else ("", "", key.strip())
    return (".".join(filter(None, (table, inner))), last), [f"{last} ={value}", *lines[1:]]


def _laid_over(far: Entries, near: Entries) -> Entries:
    """Both; of a key that both have, the nearer. What the nearer rules out of the farther goes."""
    kept = {place: lines for place, lines in far.items() if RIVALS.get(place) not in near}
    for name, info in Recipe.model_fields.items():
        mark = tagged(info)
        chosen = near.get((name, mark.key)) if mark else None
        if mark and chosen and far.get((name, mark.key), [""])[-1] != chosen[-1]:
            word = chosen[-1].partition("=")[2].split("#")[0].strip().strip("\"'")
            own = next((table.model_fields for table in members(info) if mark.of(table) == word), None)
            kept = {place: lines for place, lines in kept.items() if place[0] != name or own is None or place[1] in own}
    return {**kept, **near}


def _written(layer: Layer) -> str:
    """Tables in the order of the schema, keys in the order in which they came."""
    order = ["", *Recipe.model_fields]
    names = sorted({table for table, _ in layer.entries}, key=lambda n: _rank(order, n))
    parts = []
    for name in names:
        lines = [line for (table, _), entry in layer.entries.items() if table == name for line in entry]
        parts.append("\n".join([*layer.head, *lines] if name == "" else [f"[{name}]", *lines]))
    return "\n\n".join(parts if names[0] == "" else ["\n".join(layer.head), *parts]) + "\n"


def _rank(order: list[str], name: str) -> tuple[int, str]:
    first = name.partition(".")[0]
    return (order.index(first) if first in order else len(order), name)
