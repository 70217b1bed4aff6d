"""Write docs/recipes.md from the schema: python docs/make_recipes.py

The sentence after each field in `finetune/recipe/` is its documentation; a test fails when the page is stale.
"""

import ast
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel

from finetune import recipe

PAGE = Path(__file__).parent / "recipes.md"
HEAD = """# Recipes

A recipe is a TOML file. `finetune recipes list` names the shipped ones, `recipes copy` gives you one to change, and
`--set table.key=value` changes a value for one command. Unknown keys, wrong types and contradictions are reported
together, before anything is loaded. Length is counted in optimizer steps. Paths are taken from where the command runs.

`finetune plan RECIPE` shows every value and where it came from. The resolved recipe is saved as `recipe.toml` in the
run and in the adapter's metadata; `finetune train` on it repeats the run.

This page is made from the schema by `python docs/make_recipes.py`.
"""


def page() -> str:
    """The whole page."""
    notes = _notes()
    parts = [HEAD, _table("", recipe.Recipe, notes)]
    for name, field in recipe.Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts += [f"## [{name}]\n", _table(f"{name}.", field.annotation, notes)]
    return "\n".join(parts)


def _table(prefix: str, model: type[BaseModel], notes: dict[tuple[str, str], str]) -> str:
    rows = ["| key | default | what it is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = "required" if field.is_required() else _toml(field.get_default(call_default_factory=True))
        note = notes.get((model.__name__, name), _choices(field.annotation))
        rows.append(f"| `{prefix}{name}` | {default} | {note} |")
    return "\n".join(rows) + "\n"


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


def _choices(annotation: object) -> str:
    found = getattr(annotation, "__args__", ())
    return ", ".join(map(str, found)) if found and all(isinstance(a, str) for a in found) else ""


def _notes() -> dict[tuple[str, str], str]:
    """(class, field) -> the string that follows the field in the source."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(Path(recipe.__file__).read_text(encoding="utf-8")).body:
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, after in pairwise(body):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant):
                assert isinstance(node, ast.ClassDef) and isinstance(field.target, ast.Name)
                found[node.name, field.target.id] = " ".join(str(text.value).split())
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
