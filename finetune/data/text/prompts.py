"""The grammar of prompts: {trigger} and {class_word} filled in, with the right article before them."""

import re
from collections.abc import Iterable
from functools import lru_cache

from finetune.errors import InputError
from finetune.recipe.placeholders import PLACEHOLDERS, prompt_fault

WORD_NAMES = {"trigger": "trigger", "class_word": "class word"}
"""A placeholder -> what people call its word."""

_BOTH = r"\{trigger\}\s+\{class_word\}|\{class_word\}\s+\{trigger\}"
_SLOTS = re.compile(rf"(?:(?P<article>(?<![\w'-])an?|^\s*An?)\s+)?(?P<slots>{_BOTH}|\{{trigger\}}|\{{class_word\}})")
_LIKE_A_VOWEL = re.compile(r"[aeiou]|8|1[18]\b|hour|honest|honou?r|heir|x-", re.IGNORECASE)
_LIKE_A_CONSONANT = re.compile(r"uni(?![nm])|us[eu]|usb|uk|ufo|ut[eio]|ur[aei]|eu|ewe|one(?![a-rt-z])|once\b", re.I)
_SPELT_OUT = re.compile(r"[FHLMNRSX](?:[B-DF-HJ-NP-TV-XZ0-9]+)?\b")
"""Letters whose names begin with a vowel, as in an LCD and an X-ray."""
_PLURAL = re.compile(r"(?<![suia])s$|\b(?:children|people|(?:wo)?men)$")
_ONE = re.compile(r"\b(?:lens|series|species|news)$")


def expand(prompt: str, trigger: str | None, class_word: str | None) -> str:
    """The prompt with the words in place of {trigger} and {class_word}.

    `a {class_word}` becomes `an umbrella`, or `shoes`; a trigger that contains the class word does not repeat it.

    Raises:
        InputError: the prompt holds what is not read, or a placeholder has no word.
    """
    if fault := prompt_fault(prompt):
        raise InputError(f'"{prompt}": {fault.problem}', fault.remedy)
    if lacking := missing_word(prompt, trigger, class_word):
        raise InputError(f'"{prompt}": there is no {WORD_NAMES[lacking]}', "write the word itself in its place")
    words = {"trigger": tidy(trigger), "class_word": tidy(class_word)}
    for name, word in words.items():
        if "{" in word or prompt_fault(word):
            raise InputError(f"the {WORD_NAMES[name]} {word!r} is no plain word", "choose another word")
    if includes(trigger, class_word):
        prompt = re.sub(_BOTH, "{trigger}", prompt)
    return _SLOTS.sub(lambda found: _phrase(found, words), prompt).strip()


def missing_word(prompt: str, trigger: str | None, class_word: str | None) -> str:
    """The placeholder in the prompt that has no word: trigger, class_word; "": none."""
    words = dict(zip(PLACEHOLDERS, (trigger, class_word), strict=True))
    return next((name for name in PLACEHOLDERS if f"{{{name}}}" in prompt and not tidy(words[name])), "")


def includes(trigger: str | None, class_word: str | None) -> bool:
    """Whether the class word is among the trigger's words, as `mug` is in `zwx mug`."""
    return bool(trigger and class_word and f" {tidy(class_word)} ".lower() in f" {tidy(trigger)} ".lower())


def with_article(noun: str) -> str:
    """`a bell`, `an umbrella`, `an LCD`, `shoes`; of a script without articles the noun alone."""
    return f"{article(noun)} {noun}" if _latin(noun) and not is_plural(noun) else noun


def article(phrase: str) -> str:
    """`a` or `an`, as the first word sounds."""
    if _SPELT_OUT.match(phrase):
        return "an"
    return "an" if _LIKE_A_VOWEL.match(phrase) and not _LIKE_A_CONSONANT.match(phrase) else "a"


def is_plural(noun: str) -> bool:
    """Whether an English noun names several, by its ending: `running shoes`, `pairs of shoes`, no `glass` or `bus`."""
    head = noun.split(" of ")[0]
    return bool(_PLURAL.search(head)) and not _ONE.search(head)


def tidy(word: str | None) -> str:
    """With single spaces; "" for none."""
    return " ".join((word or "").split())


def all_lack(prompts: Iterable[str], word: str) -> bool:
    """Whether none of the prompts has it as a whole word, in any case."""
    whole = whole_word(tidy(word))
    return not any(whole.search(tidy(prompt)) for prompt in prompts)


@lru_cache(64)
def whole_word(word: str) -> re.Pattern[str]:
    """Matches it as a whole word in any case, as tokenizers that fold case see it."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _phrase(found: re.Match[str], words: dict[str, str]) -> str:
    """The words of placeholders side by side, after the article that they need."""
    phrase = re.sub(r"\{(\w+)\}", lambda slot: words[slot[1]], found["slots"])
    written = found["article"]
    if not written or not _latin(phrase):
        return re.sub(r"\{.*", "", found[0], flags=re.DOTALL) + phrase
    ends_in_noun = "{class_word}" in found["slots"] or phrase.lower().endswith(f" {words['class_word']}".lower())
    if ends_in_noun and words["class_word"] and is_plural(words["class_word"]):
        return phrase
    right = article(phrase)
    return f"{right.capitalize() if 'A' in written else right} {phrase}"


def _latin(phrase: str) -> bool:
    return re.match(r"[A-Za-z0-9]", phrase) is not None
