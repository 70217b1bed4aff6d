"""Captions that were written for another program: what of it means the same here, and what would be learnt as words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from finetune.data.text.caption_files import first_three
from finetune.recipe.foreign_syntax import telltales, translated
from finetune.recipe.placeholders import PLACEHOLDERS

_BRACES = re.compile(r"\{([A-Za-z][\w ]*)\}")


class ReadCaptions(NamedTuple):
    """Captions as this program writes them, and what was made of what others write differently."""

    texts: dict[str, str]
    further: dict[str, tuple[str, ...]]
    notes: list[str]
    problems: list[str]


def read_captions(texts: Mapping[str, str], further: Mapping[str, Sequence[str]]) -> ReadCaptions:
    """What has the same meaning here, such as ai-toolkit's [trigger], is taken over; what has none is a problem.

    texts: picture -> its caption. further: picture -> its further captions.
    """
    understood: dict[str, list[str]] = {}

    def read(name: str, text: str) -> str:
        ours, found = translated(text) if text else (text, ())
        for one in found:
            if (known := understood.setdefault(one, []))[-1:] != [name]:
                known.append(name)
        return ours

    ours = {name: read(name, text) for name, text in texts.items()}
    others = {name: tuple(read(name, text) for text in some) for name, some in further.items()}
    notes = [f"caption syntax of another program: {one} ({_pictures(names)})" for one, names in understood.items()]
    return ReadCaptions(ours, others, notes, foreign(ours, others))


def foreign(texts: Mapping[str, str], further: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence on each sort of syntax that is plain text here, with the pictures that it is on."""
    seen: dict[str, tuple[str, str, list[str]]] = {}
    for name, text in chain(texts.items(), ((name, text) for name, some in further.items() for text in some)):
        for what, written, remedy in _faults(text) if text else ():
            if (known := seen.setdefault(what, (written, remedy, []))[2])[-1:] != [name]:
                known.append(name)
    return [
        f"caption syntax of another program: {written} {what}, and would be learnt as words ({_pictures(names)}); "
        f"{remedy}"
        for what, (written, remedy, names) in seen.items()
    ]


def _faults(text: str) -> Iterator[tuple[str, str, str]]:
    """(what it is, as it is written, what to write instead)"""
    for one, written in telltales(text):
        yield one.what, written, _for_captions(one.remedy)
    for found in _BRACES.finditer(text):
        if found[1] not in PLACEHOLDERS:
            yield "is a placeholder of another program", found[0], "write {trigger} in its place, or the word itself"


def _for_captions(remedy: str) -> str:
    """What a remedy for prompts is for captions."""
    if remedy.startswith("write a prompt for each"):
        return "write the word itself, or {one|another}"
    return remedy.split(": ")[0].replace("prompt", "caption")


def _pictures(names: list[str]) -> str:
    return f"{len(names)} captions: {first_three(names)}" if len(names) > 1 else names[0]
