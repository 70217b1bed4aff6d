"""Several captions of one picture: the lines of its caption file, the column `captions`, and wildcards, `{red|blue}`.

Wildcards are written out before training, so that every caption that can be shown is known, checked and encoded.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from finetune.data.attributes import NO_ATTRIBUTES
from finetune.data.text.caption_files import FoundCaptions, first_three
from finetune.data.text.wildcards import MOST_WRITTEN_OUT, combinations, wildcard_fault, write_out
from finetune.data.text.wording import CaptionWords

_MANY = 10**9
_WRAPPED_FROM = 60
"""characters of a line that is perhaps continued on the next"""


class CaptionChoices(NamedTuple):
    """What pictures' captions are before the trigger is put in, and what is to be said of that."""

    texts: dict[str, list[str]]
    """Picture -> its captions, the first one first; none where nobody wrote one."""
    remarks: list[tuple[str, str]]
    """(picture, remark)"""
    problems: list[str]

    def first(self, name: str) -> str:
        return next(iter(self.texts[name]), "")


def read_choices(names: Sequence[str], found: FoundCaptions, words: CaptionWords) -> CaptionChoices:
    """The captions of each picture, on one line each, none twice."""
    choices = CaptionChoices({}, [], [])
    faults: dict[str, list[str]] = {}
    for name in names:
        written = list(_written(name, found, words, choices.remarks))
        out: dict[str, None] = {}
        for text in written:
            if fault := wildcard_fault(text):
                faults.setdefault(fault, []).append(name)
                out[text] = None
                continue
            out |= dict.fromkeys(several := write_out(_with_class_word(text, words)))
            if (count := combinations(text)) > MOST_WRITTEN_OUT:
                of = f"the {count:,}" if count < _MANY else "very many"
                choices.remarks.append((name, f"{len(several)} of {of} combinations of its wildcards are used"))
        choices.texts[name] = [text for text in out if text]
    choices.problems.extend(f"{fault}: {first_three(some)}" for fault, some in faults.items())
    lacking = [name for name in names if any("{class_word}" in text for text in choices.texts[name])]
    if lacking:
        choices.problems.append(
            f"captions contain {{class_word}}, but no `class_word` is declared: {first_three(lacking)}"
        )
    return choices


def _written(
    name: str, found: FoundCaptions, words: CaptionWords, remarks: list[tuple[str, str]]
) -> Iterator[str]:  # fmt: skip
    """The captions as they were written, each on one line."""
    lines = [tidy for line in found.texts.get(name, "").split("\n") if (tidy := " ".join(line.split()))]
    if len(lines) > 1 and "sidecars" in found.source and words.caption_lines == "each":
        remark = f"the {len(lines)} lines of its caption file are {len(lines)} captions, shown in turn"
        if any(map(_goes_on, lines, lines[1:])):
            remark += "; they read like one text: set `caption_lines` to joined to make one caption of them"
        remarks.append((name, remark))
        yield from lines
    else:
        if len(lines) > 1:
            remarks.append((name, f"the {len(lines)} lines of the caption are joined into one"))
        yield " ".join(lines)
    yield from (" ".join(more.split()) for more in found.attributes.get(name, NO_ATTRIBUTES).captions)


def _goes_on(line: str, after: str) -> bool:
    return len(line) >= _WRAPPED_FROM and line[-1] not in ".!?" and after[0].islower()


def _with_class_word(text: str, words: CaptionWords) -> str:
    return text.replace("{class_word}", words.class_word) if words.class_word else text
