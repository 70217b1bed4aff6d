"""Wildcards, `a {red|blue} mug`, one in another if need be, written out as the texts that they stand for."""

import random
import re
from collections.abc import Callable, Iterator
from itertools import islice, product

MOST_WRITTEN_OUT = 32
"""captions that the wildcards of one caption are written out as, at most"""
_TRIES = 20
"""times as often that is drawn, as combinations come twice"""
_INNERMOST = re.compile(r"\{[^{}|]*\|[^{}]*\}")
_DEEPEST = 8
"""wildcards inside of wildcards"""
_FOREIGN = re.compile(r"\{[^{}|]*\$\$|\{[^{}]*?\d::")
_STRAY = re.compile(r"\{[^{}]*\||\|[^{}]*\}")


def wildcard_fault(text: str) -> str:
    """What is wrong with the wildcards of a text, in a sentence; "" where nothing is."""
    if "{" not in text and "}" not in text:
        return ""
    if foreign := _FOREIGN.search(text):
        return f"{foreign[0]}... is a wildcard with a number, which is not read here; write {{one|another}} in captions"
    whole = text = re.sub(r"\{\w*\}", "", text)
    for _ in range(_DEEPEST):
        text = _INNERMOST.sub("", text)
    if stray := _STRAY.search(text) or (text != whole and re.search(r"[{}][^{}]*", text)):
        return f"{stray[0]} is an unclosed wildcard; write {{one|another}}"
    return ""


def combinations(text: str) -> int:
    """How many texts the wildcards of a text stand for, equal ones counted each."""
    found = 1
    for options in _parts(text):
        found *= sum(map(combinations, options)) if len(options) > 1 else 1
    return found


def write_out(text: str) -> list[str]:
    """The texts that wildcards stand for, in the order of their options; of very many some, always the same."""
    if "{" not in text or (count := combinations(text)) == 1:
        return [text]
    if count <= MOST_WRITTEN_OUT:
        return list(dict.fromkeys(map(_tidy, _all(text))))
    chance = random.Random(f"wildcards {text}")
    drawn = (_one(text, chance.choice) for _ in range(_TRIES * MOST_WRITTEN_OUT))
    first = _one(text, lambda options: options[0])
    return list(islice(dict.fromkeys(map(_tidy, [first, *drawn])), MOST_WRITTEN_OUT))


def _parts(text: str) -> list[list[str]]:
    """The text in pieces: of a wildcard its options, of what is between them one."""
    pieces, depth, start = list[list[str]](), 0, 0
    for place, letter in enumerate(text):
        if letter == "{":
            if depth == 0:
                pieces.append([text[start:place]])
                start = place + 1
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
            if depth == 0:
                inside = _options(text[start:place])
                pieces.append(inside if len(inside) > 1 else [f"{{{inside[0]}}}"])
                start = place + 1
    return [*pieces, [text[start:] if depth == 0 else "{" + text[start:]]]


def _options(inside: str) -> list[str]:
    """Parted where a bar is not inside of a further wildcard."""
    options, depth = [""], 0
    for letter in inside:
        depth += (letter == "{") - (letter == "}")
        if letter == "|" and depth == 0:
            options.append("")
        else:
            options[-1] += letter
    return options


def _all(text: str) -> Iterator[str]:
    each = [
        [inner for option in options for inner in _all(option)] if len(options) > 1 else options
        for options in _parts(text)
    ]
    return ("".join(pieces) for pieces in product(*each))


def _one(text: str, pick: Callable[[list[str]], str]) -> str:
    return "".join(_one(pick(options), pick) if len(options) > 1 else options[0] for options in _parts(text))


def _tidy(text: str) -> str:
    """Without the gaps that empty options leave."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return re.sub(r"(,\s*)+,", ",", text).strip(" ,")
