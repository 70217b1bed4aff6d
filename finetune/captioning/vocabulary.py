"""Vocabulary files: named lists of what may be seen, how they are judged, and how a caption is put together."""

import math
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune import reading
from finetune import resources as shipped
from finetune.data.images.colours import Colour
from finetune.data.text.prompts import expand
from finetune.data.text.wording import CaptionWords
from finetune.errors import DataError

POCKET_NAME = "pocket"
MAX_PHRASES = 50_000
"""names of lists that are judged together, multiplied"""
_SLOT = re.compile(r"\{(\w*)\}")
_GIVEN = ("trigger", "class_word")

Name = Annotated[str, Field(min_length=1, pattern=r"^[^{}]*\S[^{}]*$")]
HexColour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class JudgedTogether(BaseModel):
    """Lists that are judged together, by phrases that hold a name of each; several phrases are averaged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phrases: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def lists(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_SLOT.findall(self.phrases[0])))


class Vocabulary(BaseModel):
    """A vocabulary file as it is written; data/vocabularies/pocket.toml shows each key at work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lists: dict[str, Annotated[tuple[Name, ...], Field(min_length=2)]]
    captions: dict[str, str]
    """product, style or other -> the caption, with {list}, {trigger} and {class_word} in it"""
    judged: tuple[JudgedTogether, ...] = ()
    grounds: dict[str, HexColour] = {}
    """name in a list -> its colour: an object on one plain ground is looked at on these grounds too"""
    judge: str = ""
    """pocket for the eyes that ship, or the folder of a CLIP"""
    unknown_below: float | None = None
    """a set of pictures is not of this world when the middle one's best phrase has a lower cosine"""
    unsure_below: float | None = None
    """and a single picture is not described"""

    def template(self, words: CaptionWords) -> str:
        """The caption for these words, the lists' slots still open.

        Raises:
            DataError: the vocabulary has none for this kind.
        """
        kind = words.shown or "other"
        if kind not in self.captions:
            raise DataError(f"the vocabulary has no caption for {kind!r}", f'add `{kind} = "..."` under [captions]')
        return self.captions[kind]

    def slots(self, template: str) -> tuple[str, ...]:
        """The lists that a caption names."""
        return tuple(name for name in dict.fromkeys(_SLOT.findall(template)) if name in self.lists)

    def groups(self) -> tuple[JudgedTogether, ...]:
        """All lists, each in one group; those that no phrase holds are judged by their names alone."""
        together = {name for group in self.judged for name in group.lists}
        alone = (JudgedTogether(phrases=(f"{{{name}}}",)) for name in self.lists if name not in together)
        return (*self.judged, *alone)

    def ground_list(self) -> str:
        """The list whose names have colours; empty when there is none."""
        return next((name for name, names in self.lists.items() if set(self.grounds) & set(names)), "")

    def colours(self) -> dict[str, Colour]:
        return {name: (int(c[1:3], 16), int(c[3:5], 16), int(c[5:7], 16)) for name, c in self.grounds.items()}


def put_together(template: str, names: dict[str, str], words: CaptionWords) -> str:
    """The caption with names of lists, trigger and class word filled in, and the article that fits."""
    filled = _SLOT.sub(lambda found: names.get(found[1], found[0]), template)
    return expand(filled, words.trigger, words.class_word)


def read_vocabulary(written: str) -> Vocabulary:
    """The vocabulary of a file; `pocket` is the one that ships.

    Raises:
        DataError: there is no such file, or something in it is wrong: all of it is named.
    """
    file = shipped.VOCABULARIES / f"{POCKET_NAME}.toml" if written == POCKET_NAME else Path(written)
    try:
        found = Vocabulary.model_validate(reading.read_toml(file, DataError, "give a TOML file, or `pocket`"))
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in e.errors(include_url=False)]
        raise DataError(f"{file}: " + "; ".join(wrong), "`pocket` is one that ships") from e
    if wrong := _contradictions(found):
        raise DataError(f"{file}: " + "; ".join(wrong), "`pocket` is one that ships")
    return found


def _contradictions(found: Vocabulary) -> list[str]:
    """What is wrong between the parts of a vocabulary, a phrase each."""
    wrong = [f"captions.{kind} is not one of product, style, other" for kind in found.captions
             if kind not in ("product", "style", "other")]  # fmt: skip
    for kind, template in found.captions.items():
        slots = set(_SLOT.findall(template))
        wrong += [f"captions.{kind} names {{{s}}}, but there is no such list" for s in sorted(slots)
                  if s not in found.lists and s not in _GIVEN]  # fmt: skip
        if not found.slots(template):
            wrong.append(f"captions.{kind} names no list: it would be the same for every picture")
    wrong += [f"lists.{name}: names repeat" for name, names in found.lists.items() if len(set(names)) < len(names)]
    held = [name for group in found.judged for name in group.lists]
    wrong += [f"judged: {{{name}}} is not a list" for name in held if name not in found.lists]
    wrong += [f"judged: {{{name}}} is judged twice" for name in sorted({n for n in held if held.count(n) > 1})]
    for group in found.judged:
        if any(set(_SLOT.findall(phrase)) != set(group.lists) for phrase in group.phrases):
            wrong.append(f"judged: {group.phrases[0]!r} and the phrases with it hold different lists")
        size = math.prod(len(found.lists.get(name, ())) for name in group.lists)
        if size > MAX_PHRASES:
            wrong.append(f"judged: {group.phrases[0]!r} stands for {size:,} phrases; at most {MAX_PHRASES:,}")
    known = {name for names in found.lists.values() for name in names}
    wrong += [f"grounds: {name!r} is in no list" for name in found.grounds if name not in known]
    return wrong
