"""What a recipe still has of the bundled example that it was copied from, though its pictures are others."""

import tomllib
from pathlib import Path
from typing import NamedTuple

from finetune import recipe
from finetune import resources as shipped
from finetune.data.example import CARD
from finetune.data.text.captions import mentions
from finetune.data.text.prompts import expand, missing_word
from finetune.planning.plan import Plan


class BundledExample(NamedTuple):
    """A bundled dataset, and the prompts of the recipes that are made for it."""

    class_word: str
    license: str
    prompts: tuple[str, ...]


def leftovers(plan: Plan) -> list[str]:
    """A sentence for each: the bundled pictures; prompts that speak of them; the licence of them."""
    own, words = plan.recipe, plan.data.class_word or ""
    if shipped.data_path(own.data.path) != own.data.path:
        return [f"data.path is {own.data.path}: the bundled pictures, none of yours"]
    found = []
    for example in _examples():
        written = {_filled(prompt, plan) for prompt in example.prompts}
        spoken = example.class_word and example.class_word != words
        alike = [p for p in own.sample.prompts if p in written and spoken and mentions(p, example.class_word)]
        if alike:
            found.append(f"sample.prompts still speaks of the example's {example.class_word}: {alike[0]!r}")
        if example.license and own.export.license == example.license:
            found.append(f"export.license is {example.license}, that of the example's pictures: leave it out unless "
                         "it is meant for your adapter")  # fmt: skip
    return list(dict.fromkeys(found))


def _examples() -> list[BundledExample]:
    recipes = [path for path in sorted(shipped.RECIPES.glob("*.toml")) if "example:" in path.read_text("utf-8")]
    written = [recipe.written_in(path) for path in recipes]
    return [_example(one) for one in written if str(one.get("data.path", "")).startswith("example:")]


def _example(written: dict[str, object]) -> BundledExample:
    card = shipped.data_path(Path(str(written["data.path"]))) / CARD
    told = tomllib.loads(card.read_text(encoding="utf-8"))
    prompts = written.get("sample.prompts", [])
    texts = tuple(map(str, prompts)) if isinstance(prompts, list) else ()
    return BundledExample(told.get("class_word", ""), told.get("license", ""), texts)


def _filled(prompt: str, plan: Plan) -> str:
    """As the plan has it; unfilled where the dataset has no word for it."""
    words = plan.data.trigger, plan.data.class_word
    return prompt if missing_word(prompt, *words) else expand(prompt, *words)
