"""What may stand in a prompt: words, {trigger} and {class_word}; the syntax of other programs is found and refused."""

import difflib
import re
from typing import NamedTuple

from finetune.recipe.foreign_syntax import TRANSLATIONS, telltales

PLACEHOLDERS = ("trigger", "class_word")

_BRACES = re.compile(r"\{([^{}]*)\}")
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
"""NUL and halves of characters, which no tokenizer reads and no picture can carry in its metadata"""
_PLAIN = "write {trigger} and {class_word} only, or the word itself"


class PromptFault(NamedTuple):
    """What a prompt holds that is not read, and what to write instead."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


def prompt_fault(prompt: str) -> PromptFault | None:
    """The first thing in a prompt that is no plain word and neither {trigger} nor {class_word}; None: it is sound."""
    for found in _BRACES.finditer(prompt):
        if found[1] not in PLACEHOLDERS:
            return _wildcard(prompt, found[0], found[1]) if "|" in found[1] else _unknown(found[0], found[1])
    if _NO_TEXT.search(prompt):
        return PromptFault("a character that is none", "write it as UTF-8 text")
    stray = re.search(r"[{}]", without_placeholders(prompt))
    if stray:
        return PromptFault(f"a stray {stray[0]}", "write braces around trigger and class_word only")
    for one, written in telltales(prompt):
        return PromptFault(f"{written} {one.what}", one.remedy)
    for meaning in TRANSLATIONS:
        if hit := meaning.pattern.search(prompt):
            return PromptFault(f"{hit[0]} is {meaning.who}", f"write {meaning.pattern.sub(meaning.ours, hit[0])}")
    return None


def checked_prompt(prompt: str) -> str:
    """The prompt. Raises ValueError with a sentence when it holds what is not read."""
    if fault := prompt_fault(prompt):
        raise ValueError(str(fault))
    return prompt


def without_placeholders(prompt: str) -> str:
    return re.sub(rf"\{{({'|'.join(PLACEHOLDERS)})\}}", "", prompt)


def _wildcard(prompt: str, found: str, inside: str) -> PromptFault:
    each = ", ".join(f'"{prompt.replace(found, word.strip())}"' for word in inside.split("|")[:2])
    return PromptFault(f"{found} is a wildcard of other programs: it is not read here", f"write each prompt: {each}")


def _unknown(found: str, inside: str) -> PromptFault:
    word = re.sub(r"[\s-]+", "_", inside.strip().lower())
    near = difflib.get_close_matches(word, PLACEHOLDERS, 1)
    return PromptFault(f"{found} is an unknown placeholder", f"write {{{near[0]}}}" if near else _PLAIN)
