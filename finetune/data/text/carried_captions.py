"""Captions that a picture had in a dataset prepared before, taken over when its source is prepared again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.data.attributes import NO_ATTRIBUTES
from finetune.data.example import Example
from finetune.data.record import Seen
from finetune.data.text.caption_choices import read_choices
from finetune.data.text.caption_files import FoundCaptions, first_three
from finetune.data.text.captions import CaptionNote, with_trigger, without_trigger
from finetune.data.text.wording import CaptionOrigin, CaptionWords

CARRIED: tuple[CaptionOrigin, ...] = ("written", "model")
"""captions that a file's name or the template gave are given anew"""


class Earlier(NamedTuple):
    """A dataset prepared before: its pictures by what they hold, and its words."""

    path: Path
    examples: Sequence[Example]
    pictures: Mapping[str, Seen]
    words: CaptionWords


class Carried(NamedTuple):
    captions: FoundCaptions
    notes: list[CaptionNote]


def carry_over(
    earlier: Earlier, names: Sequence[str], pictures: Mapping[str, Seen], found: FoundCaptions, words: CaptionWords
) -> Carried:
    """The captions of these pictures with those that a person or a model gave them in an earlier dataset in their
    place. A picture is the same where its bytes are, or the pixels that a prepared dataset holds of it."""
    known, sources = _by_content(earlier), read_choices(names, found, words)
    texts, origins, attributes = dict(found.texts), dict(found.origins), dict(found.attributes)
    taken, replaced, matched = list[str](), list[str](), set[str]()
    for name in names:
        example = known.get(pictures[name].digest) or known.get(pictures[name].pixels)
        if example is None:
            continue
        matched.add(example.name)
        if example.origin not in CARRIED or not example.caption:
            continue
        captions = [_renamed(one, earlier.words, words) for one in example.captions]
        here = attributes.get(name, NO_ATTRIBUTES)
        own = [with_trigger(one, words) for one in sources.texts[name]]
        if own and own != list(dict.fromkeys(with_trigger(one, words) for one in captions)):
            replaced.append(name)
        taken.append(name)
        texts[name], origins[name] = captions[0], example.origin
        attributes[name] = here._replace(captions=tuple(captions[1:]))
    if taken and found.source == "none":
        found = found._replace(source="metadata.jsonl")
    made = found._replace(texts=texts, origins=origins, attributes=attributes)
    return Carried(made, [CaptionNote("", text) for text in _said(earlier, names, taken, replaced, matched)])


def _said(
    earlier: Earlier, names: Sequence[str], taken: Sequence[str], replaced: Sequence[str], matched: set[str]
) -> list[str]:
    said = [f"{len(taken)} of {len(names)} captions were taken over from {earlier.path.name}"]
    if replaced:
        said.append(f"{len(replaced)} of these replace a different caption in the source: {first_three(replaced)}")
    if gone := [e.name for e in earlier.examples if e.name not in matched]:
        said.append(f"{len(gone)} pictures of {earlier.path.name} are not in the source: {first_three(gone)}")
    return said


def _by_content(earlier: Earlier) -> dict[str, Example]:
    known = {digest: e for e in earlier.examples if (digest := earlier.pictures[e.name].pixels)}
    return known | {e.digest: e for e in earlier.examples}


def _renamed(caption: str, before: CaptionWords, words: CaptionWords) -> str:
    """The caption without the earlier dataset's trigger, where this one has another."""
    if before.trigger and before.trigger != words.trigger:
        return without_trigger(caption, before.trigger, before.class_word) or caption
    return caption
