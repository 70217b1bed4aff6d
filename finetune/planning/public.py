"""What a run tells others, in its file, the card, pictures and trackers: its recipe as it may be published.

Texts are cleaned here once, and what was left out of them is known before anything is trained; generation and training
read them as they were written.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from finetune import recipe
from finetune import resources as shipped
from finetune.data.example import Dataset, Example
from finetune.data.rights.licences import Rights
from finetune.data.rights.provenance import bounded, credit_lines, in_words, sums
from finetune.recipe.resolved import ResolvedRecipe
from finetune.reporting.public import MOST_RECIPE_BYTES, public

_TEXTS = (
    "data.trigger", "data.class_word", "prior.prompt", "sample.prompts", "sample.negative", "evaluate.prompts",
    "export.title", "export.license", "report.project",
)  # fmt: skip
"""recipe keys that hold a person's own words"""


def public_recipe(resolved: ResolvedRecipe, data: Dataset) -> ResolvedRecipe:
    """The recipe for others: names in place of paths, texts cleaned."""
    named = public(data.root.name).text
    shown = recipe.without_paths(resolved, named, public(shipped.public_name(resolved.base)).text)
    changes = {key.replace(".", "__"): _cleaned(recipe.value(shown, key)) for key in _TEXTS if recipe.value(shown, key)}
    return recipe.replace(shown, **changes)


def told_recipe(resolved: ResolvedRecipe, data: Dataset) -> str:
    """The same as TOML, for a file's header; "" where it is too long for one."""
    text = recipe.dumps(public_recipe(resolved, data))
    return text if len(text.encode()) <= MOST_RECIPE_BYTES else ""


def left_out(resolved: ResolvedRecipe, data: Dataset) -> Iterator[str]:
    """A sentence on each text of which others get less than was written."""
    where = "the adapter file, its card and its pictures"
    for key in _TEXTS:
        found = recipe.value(resolved, key)
        texts = found if isinstance(found, tuple) else (found,)
        for number, text in enumerate(texts, 1):
            named = f"{key}, item {number}" if isinstance(found, tuple) else key
            if isinstance(text, str) and (removed := public(text).removed):
                yield f"{named}: {removed} will be left out of {where}"
    if removed := public(licenses_in_words(data)).removed:
        yield f"the dataset's licence: {removed} will be left out of {where}"
    if not told_recipe(resolved, data):
        yield f"the recipe is longer than {MOST_RECIPE_BYTES >> 10} KiB, and is left out of the adapter file"


def licenses_in_words(data: Dataset, classes: Sequence[Example] = ()) -> str:
    """What the pictures may be used for: of each licence how many, with their authors; of one for all, that one. So of
    class images."""
    found, beside = data.licenses, in_words(sums((e.attributes for e in classes), Rights()))
    one = len(found) == 1 and not found[0].authors and not any(e.attributes.license for e in data.examples)
    own = data.license if one else in_words(found)
    return "; ".join(filter(None, [own, f"class images: {beside}" if beside else ""]))


def credits_of(data: Dataset, classes: Sequence[Example] = ()) -> str:
    """A line for each author whose licence asks to be named; as many as a file's header has room for."""
    lines = credit_lines((e.attributes for e in data.examples), data.rights)
    return bounded([*lines, *credit_lines((e.attributes for e in classes), Rights())])


def _cleaned(value: object) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_cleaned, value))
    return public(value).text if isinstance(value, str) else value
