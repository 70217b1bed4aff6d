"""Recipes that tests write: a sound one to add to, and what is said of one that is refused."""

from pathlib import Path

import pytest

from finetune import recipe
from finetune.errors import RecipeError

SOUND = 'base = "pocket"\n[data]\npath = "mug"\n'


def refused(path: Path, *sets: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        recipe.load(path, sets)
    return caught.value


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
