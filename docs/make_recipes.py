"""Write docs/recipes.md from the schema: python docs/make_recipes.py

The sentence after each field in `finetune/recipe/schema.py` is its documentation; a test fails when the page is stale.
"""

import ast
from itertools import pairwise
from pathlib import Path

from finetune import recipe
from finetune.recipe import schema
from finetune.recipe.tables import Table, Tagged, members, tagged

PAGE = Path(__file__).parent / "recipes.md"
HEAD = """# Recipes

A recipe is a TOML file. `finetune recipes list` names the shipped ones, `recipes copy` gives you one to change, and
`--set table.key=value` changes a value for one command. Unknown keys, wrong types and contradictions are reported
together, before anything is loaded. Length is counted in optimizer steps. Paths are taken from where the command runs.

`extends = ["sdxl-product"]` at the top of a recipe takes over what it does not write itself from another one: shipped,
or a file beside it; or from several, each laid over the one before. The shipped recipes are made so, of a goal
(`recipes/goals`), a base (`recipes/bases`) and where needed a memory class. `finetune recipes show` and `copy` give
each in one piece, with its comments.

`finetune plan RECIPE` shows every value and where it came from. The resolved recipe is saved as `recipe.toml` in the
run and in the adapter's metadata; `finetune train` on it repeats the run.

In prompts `{trigger}` and `{class_word}` stand for the words that the dataset was prepared with, or that `[data]`
declares: `a photo of {trigger} {class_word} in the snow`. `a {class_word}` becomes `an umbrella`, or `shoes`; a trigger
that contains the class word does not repeat it. A placeholder whose word is not declared is an error, and so is the
syntax of other programs that would reach the model unread: other placeholders, `{red|blue}` and `__colour__` wildcards,
`<lora:...>`, weights such as `(mug:1.2)`, options such as `--n`. `finetune plan` shows the final prompts, and warns if
none has the trigger or one is longer than the base reads. One prompt without the trigger is intended: it shows what
else has changed.

`adapter.method`, `optimizer.name` and `prior.mode` decide which other keys their table has: if a description begins
with names of choices, the key exists only for these.

This page is made from the schema by `python docs/make_recipes.py`.
"""


def page() -> str:
    """The whole page."""
    fields = recipe.Recipe.model_fields
    values = [_row(recipe.Recipe, name, "") for name, field in fields.items() if not members(field)]
    parts = [HEAD, _table(values)]
    for name, field in fields.items():
        if tables := members(field):
            parts += [f"## [{name}]\n", _table(_rows(name, tables, tagged(field)))]
    return "\n".join(parts)


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | default | what it does |", "|---|---|---|", *rows]) + "\n"


def _rows(name: str, tables: tuple[type[Table], ...], mark: Tagged | None) -> list[str]:
    """Rows of a table. Of one that a key chooses, each row says which of the choices have it, unless all do."""
    rows = []
    for key in [key.rpartition(".")[2] for key in recipe.keys() if key.startswith(f"{name}.")]:
        if mark and key == mark.key:
            rows.append(_row(tables[0], key, f"{name}."))
            continue
        having: dict[str, list[type[Table]]] = {}
        for table in tables:
            if key in table.model_fields:
                having.setdefault(_row(table, key, f"{name}."), []).append(table)
        for few in having.values():
            words = [f"`{mark.of(table)}`" for table in few] if mark and len(few) < len(tables) else []
            rows.append(_row(few[0], key, f"{name}.", f"{', '.join(words)}: " if words else ""))
    return rows


def _row(table: type[Table], key: str, prefix: str, choices: str = "") -> str:
    field = table.model_fields[key]
    value = None if field.default_factory_takes_validated_data else field.get_default(call_default_factory=True)
    return f"| `{prefix}{key}` | {'required' if field.is_required() else _toml(value)} | {choices}{_note(table, key)} |"


def _note(table: type[Table], key: str) -> str:
    """The text after a field, in its class or the nearest that it inherits from."""
    return next(NOTES[c.__name__, key] for c in table.__mro__ if (c.__name__, key) in NOTES)


def _toml(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{v}"' for v in value) + "]`"
    return f"`{value}`"


def _notes() -> dict[tuple[str, str], str]:
    """(class, field) -> the string that follows the field in the source."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(Path(schema.__file__).read_text(encoding="utf-8")).body:
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, after in pairwise(body):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant):
                assert isinstance(node, ast.ClassDef) and isinstance(field.target, ast.Name)
                found[node.name, field.target.id] = " ".join(str(text.value).split())
    return found


NOTES = _notes()

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
