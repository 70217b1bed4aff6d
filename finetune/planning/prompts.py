"""A recipe's prompts as pictures are made of them, and what is worth knowing of them beforehand."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from finetune import families, reading
from finetune import resources as shipped
from finetune.data.example import Dataset
from finetune.data.text.prompts import WORD_NAMES, all_lack, expand, missing_word
from finetune.errors import RecipeError, action
from finetune.families.base import BaseInfo
from finetune.recipe import Recipe
from finetune.recipe.placeholders import prompt_fault

DEFAULT_PROMPTS = 4
_LOST_SHOWN = 80
"""characters at each end of what a base does not read that a notice shows"""
_EXAMPLES = {"trigger": "sks", "class_word": "mug"}


class NamedPrompt(NamedTuple):
    where: str
    """Key of the recipe, file and line, or number."""
    text: str


def resolve_prompts(wanted: Recipe, data: Dataset, captions: Sequence[str]) -> tuple[str, ...]:
    """Those of the recipe with the dataset's words in them; when none is written, those of its goal, else captions.

    Raises:
        RecipeError: a placeholder has no word, or no caption can stand in.
    """
    written = wanted.sample.prompts or _of_goal(data) or _of_captions(captions)
    return tuple(filled(f"sample.prompts, item {n}", prompt, data) for n, prompt in enumerate(written, 1))


def filled(where: str, prompt: str, data: Dataset) -> str:
    """A prompt of the recipe with the dataset's words in it. Raises RecipeError: a placeholder has no word."""
    if lacking := missing_word(prompt, data.trigger, data.class_word):
        problem = f'{where}, "{prompt}": the dataset has no {WORD_NAMES[lacking]}'
        if data.prepared:
            step = action("prepare", source="PHOTOS", out="DIR", **{lacking: _EXAMPLES[lacking]})
            raise RecipeError(problem, "write the word itself into the prompt, or prepare the dataset with it", step)
        raise RecipeError(problem, f'declare it: data.{lacking} = "{_EXAMPLES[lacking]}"')
    return expand(prompt, data.trigger, data.class_word)


def prompt_notices(base: str, facts: BaseInfo, resolved: Recipe, trigger: str | None) -> list[str]:
    """A sentence on prompts that all lack the trigger, and on each that is longer than the base reads."""
    prompts = resolved.sample.prompts
    named = [NamedPrompt(f"sample.prompts, item {n}", prompt) for n, prompt in enumerate(prompts, 1)]
    named += [NamedPrompt(f"evaluate.prompts, item {n}", one) for n, one in enumerate(resolved.evaluate.prompts, 1)]
    found = list(too_long(base, facts, [*named, NamedPrompt("sample.negative", resolved.sample.negative)]))
    if trigger and all_lack(prompts, trigger):
        found.insert(0, f"none of sample.prompts has the trigger {trigger!r}: no sample picture will show what is "
                        "trained; write {trigger} into one")  # fmt: skip
    return found


def unlike_captions(prompts: Sequence[str], data: Dataset) -> Iterator[str]:
    """A sentence on the first prompt that uses the trigger as no caption does: `a sks bag` beside `a sks handbag`.
    Captions that have the trigger by itself, too, allow for every phrase."""
    if not data.trigger:
        return
    pattern = _around(data.trigger)
    captions = (wording for e in data.examples for wording in (e.wordings or (e.caption,)))
    said = {found[0].lower() for caption in captions if (found := pattern.search(caption))}
    for prompt in prompts:
        found = pattern.search(prompt) if said else None
        phrase = found[0].lower() if found else ""
        if phrase and said.isdisjoint({phrase, data.trigger.lower()}):
            yield (
                f'the prompt "{prompt}" says {phrase!r}, and captions say {min(said)!r}: what is trained answers to '
                "the wording of the captions"
            )
            return


def _around(trigger: str) -> re.Pattern[str]:
    """Finds the trigger and the word that follows; without one the trigger alone."""
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?: +[\w-]+)?(?!\w)", re.IGNORECASE)


def too_long(base: str, facts: BaseInfo, prompts: Sequence[NamedPrompt]) -> Iterator[str]:
    """A sentence on each prompt of which the base's text encoder reads only the beginning."""
    # a token has a byte at least, and what stands around a caption less than half of the limit
    long = [prompt for prompt in prompts if len(prompt.text.encode()) > facts.max_tokens // 2]
    counts = families.lost_tokens(base, facts, [prompt.text for prompt in long]) if long else []
    for (where, _), (tokens, lost) in zip(long, counts, strict=True):
        if lost:
            end = lost if len(lost) <= 2 * _LOST_SHOWN else f"{lost[:_LOST_SHOWN]} ... {lost[-_LOST_SHOWN:]}"
            yield f"{where}: {tokens} tokens, of which the base reads {facts.max_tokens}; it will not read {end!r}"


def _of_goal(data: Dataset) -> tuple[str, ...]:
    """The prompts that recipes of the dataset's kind are shipped with; none where a word for them is missing."""
    file = shipped.RECIPES / "goals" / f"{data.kind}.toml"
    if not reading.is_file(file):
        return ()
    prompts: list[str] = tomllib.loads(file.read_text(encoding="utf-8"))["sample"]["prompts"]
    lacking = any(missing_word(prompt, data.trigger, data.class_word) for prompt in prompts)
    return () if lacking else tuple(prompts)


def _of_captions(captions: Sequence[str]) -> tuple[str, ...]:
    sound = list(islice((c for c in dict.fromkeys(captions) if not prompt_fault(c)), DEFAULT_PROMPTS))
    if not sound:
        raise RecipeError(
            f"sample.prompts: missing, and no caption can stand in: {prompt_fault(captions[0])}", "write sample.prompts"
        )
    return tuple(sound)
