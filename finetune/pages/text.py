"""Texts of others on a page: nothing in them acts, nothing in them is invisible, the trigger stands out.

A file name may hold a mark that turns the reading direction, so that `gpj.exe` reads as `exe.jpg`; a caption may hold
control characters that no tokenizer ignores. Both are shown by their code, and a text's direction ends with the text.
"""

import re
import unicodedata
from collections.abc import Iterable

from markupsafe import Markup, escape

from finetune.data.text.prompts import whole_word

LONGEST = 2_000
"""Characters of one text that are shown; how many more there are is said."""
_JOINERS = "\u200c\u200d"
"""Parts of Persian words and of emoji, without which they read otherwise."""
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))


def shown_text(text: str, trigger: str | None = None, longest: int = LONGEST) -> Markup:
    """The text as HTML of its own direction; hidden characters as their code, the trigger in <mark>."""
    kept, more = text[:longest], len(text) - longest
    rest = Markup(' <span class="soft">(and {} more characters)</span>').format(f"{more:,}") if more > 0 else Markup()
    return Markup("<bdi>{}</bdi>{}").format(Markup().join(_pieces(kept, trigger)), rest)


def plain_text(text: str) -> str:
    """The text for an attribute: hidden characters as their code, such as [U+202E]."""
    return "".join(f"[{_code(c)}]" if _is_hidden(c) else c for c in text[:LONGEST])


def _pieces(text: str, trigger: str | None) -> Iterable[Markup]:
    end = 0
    for found in whole_word(trigger).finditer(text) if trigger else ():
        yield _visible(text[end : found.start()])
        yield Markup("<mark>{}</mark>").format(_visible(found[0]))
        end = found.end()
    yield _visible(text[end:])


def _visible(text: str) -> Markup:
    runs = re.split(f"([{re.escape(''.join(hidden))}])", text) if (hidden := set(filter(_is_hidden, text))) else [text]
    return Markup().join(_coded(run) if _is_hidden(run) else escape(run) for run in runs)


def _is_hidden(character: str) -> bool:
    return len(character) == 1 and unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def _coded(character: str) -> Markup:
    name = unicodedata.name(character, "control character").lower()
    return Markup('<code class="hidden" title="{}">{}</code>').format(name, _code(character))


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
