"""Wildcards, `a {red|blue} mug`, one in another if need be, written out as the texts that they stand for."""

import random
import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from math import prod

MOST_WRITTEN_OUT = 32
"""captions that the wildcards of one caption are written out as, at most"""
_TRIES = 20
"""times as often that is drawn, as combinations come twice"""
_MOST_BRACES = 1000
"""in one caption"""
_INNERMOST = re.compile(r"\{[^{}|]*\|[^{}]*\}")
_DEEPEST = 8
"""wildcards inside of wildcards"""
_FOREIGN = re.compile(r"\{[^{}|]*\$\$|\{[^{}]*?\d::")
_STRAY = re.compile(r"\{[^{}]*\||\|[^{}]*\}")
_Tree = list["str | list[_Tree]"]
"""A text: what stands, and of each wildcard its options, which are texts again."""


def wildcard_fault(text: str) -> str:
    """What is wrong with the wildcards of a text, in a sentence; "" where nothing is."""
    if "{" not in text and "}" not in text:
        return ""
    if (braces := text.count("{")) > _MOST_BRACES:
        return f"it has {braces:,} opening braces; at most {_MOST_BRACES:,} are read"
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
    return _count(_parsed(text)) if "{" in text else 1


def write_out(text: str) -> list[str]:
    """The texts that wildcards stand for, in the order of their options; of very many some, always the same."""
    if "{" not in text or (count := _count(tree := _parsed(text))) == 1:
        return [text]
    if count <= MOST_WRITTEN_OUT:
        return list(dict.fromkeys(map(_tidy, _all(tree))))
    chance = random.Random(f"wildcards {text}")
    drawn = (_one(tree, chance.choice) for _ in range(_TRIES * MOST_WRITTEN_OUT))
    first = _one(tree, lambda options: options[0])
    return list(islice(dict.fromkeys(map(_tidy, [first, *drawn])), MOST_WRITTEN_OUT))


def _parsed(text: str) -> _Tree:
    pieces, depth, start = _Tree(), 0, 0
    for place, letter in enumerate(text):
        if letter == "{":
            if depth == 0:
                pieces.append(text[start:place])
                start = place + 1
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
            if depth == 0:
                inside = _options(text[start:place])
                pieces.append([_parsed(one) for one in inside] if len(inside) > 1 else f"{{{inside[0]}}}")
                start = place + 1
    return [*pieces, text[start:] if depth == 0 else "{" + text[start:]]


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


def _count(tree: _Tree) -> int:
    return prod(sum(map(_count, piece)) for piece in tree if not isinstance(piece, str))


def _all(tree: _Tree) -> Iterator[str]:
    each = [[piece] if isinstance(piece, str) else [one for option in piece for one in _all(option)] for piece in tree]
    return ("".join(pieces) for pieces in product(*each))


def _one(tree: _Tree, pick: Callable[[list[_Tree]], _Tree]) -> str:
    return "".join(piece if isinstance(piece, str) else _one(pick(piece), pick) for piece in tree)


def _tidy(text: str) -> str:
    """Without the gaps that empty options leave."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return re.sub(r"(,\s*)+,", ",", text).strip(" ,")
