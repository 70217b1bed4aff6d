"""A folder as another trainer has it, read as it is meant: what its captions, texts and names of folders say."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.data.folder import Rules
from finetune.data.text import caption_syntax, descriptions
from finetune.data.text.caption_files import FoundCaptions
from finetune.data.text.folder_names import read_folders
from finetune.data.text.wording import CaptionWords

_ASKED = 20
"""pictures without a caption that are looked at for a description of their own"""


class AsMeant(NamedTuple):
    """The captions as this program writes them, and what was understood, and not, on the way."""

    captions: FoundCaptions
    notes: tuple[str, ...]
    problems: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    """What a prepared dataset says plainly of itself, and `check` says too."""


def of_raw(
    root: Path, names: Sequence[str], found: FoundCaptions, words: CaptionWords, rules: Rules
) -> AsMeant:  # fmt: skip
    """names: the pictures that are used."""
    notes = list(found.notes)
    if words.captions_from == "description":
        found = descriptions.with_descriptions(root, names, found)
        lacking = [n for n in names if not found.texts.get(n, "").split()]
        if lacking:
            notes.append(f"{len(lacking)} of {len(names)} pictures have no description in their file")
    elif words.captions_from == "auto" and not words.template and (hint := _described(root, names, found)):
        notes.append(hint)
    folders = read_folders(reading.real_path(root).name, names, rules.folder_names, words.trigger)
    read = caption_syntax.read_captions({n: found.texts[n] for n in names if n in found.texts}, _further(found))
    attributes = folders.added_to(found.attributes)
    attributes |= {n: attributes[n]._replace(captions=some) for n, some in read.further.items()}
    found = found._replace(texts={**found.texts, **read.texts}, attributes=attributes, stand_ins=folders.captions)
    return AsMeant(found, (*notes, *folders.notes, *read.notes), (*folders.problems, *read.problems))


def of_prepared(found: FoundCaptions) -> AsMeant:
    """A prepared dataset is as it is: what its captions hold of other programs is said, and no more."""
    facts = list[str]()
    held_out = sum(one.held_out for one in found.attributes.values())
    if held_out:
        facts.append(f"held out for validation, never trained on: {held_out} of {len(found.texts)} pictures")
    weights = Counter(found.attributes[n].weight if n in found.attributes else 1.0 for n in found.texts)
    if len(weights) > 1:
        each = ", ".join(f"{number} at {weight:g}" for weight, number in sorted(weights.items(), reverse=True)[:5])
        facts.append(f"pictures are shown more or less often, by their weight: {each}")
    foreign = caption_syntax.foreign(found.texts, _further(found))
    return AsMeant(found, (*found.notes, *foreign), facts=tuple(facts))


def _further(found: FoundCaptions) -> dict[str, tuple[str, ...]]:
    return {name: one.captions for name, one in found.attributes.items() if one.captions}


def _described(root: Path, names: Sequence[str], found: FoundCaptions) -> str:
    """That pictures which nobody captioned describe themselves."""
    lacking = [n for n in names if not found.texts.get(n, "").split()][:_ASKED]
    said = {n: text for n in lacking if (text := descriptions.description(root / n))}
    if not said or 2 * len(said) < len(lacking):
        return ""
    name, text = next(iter(said.items()))
    return (
        f"pictures without captions have a description in their file, such as {name}: {text[:80]!r}; set "
        "`captions_from` to description to use it as the caption"
    )
