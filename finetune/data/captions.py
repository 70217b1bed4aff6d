"""Captions: the words that they are written with, the trigger in them, and what is trained on in the end."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from finetune import choices
from finetune.data.caption_files import TABLE, CaptionSource, FoundCaptions, first_three
from finetune.errors import DataError

DatasetKind = choices.Kind | Literal[""]


class CaptionNote(NamedTuple):
    """A remark on one file, such as a conversion; it is on the whole dataset when `file` is empty."""

    file: str
    text: str


class Coverage(NamedTuple):
    """How many captions have the trigger, out of how many."""

    having: int
    of: int


class CaptionWords(NamedTuple):
    """The trigger, class word and template that captions are written with."""

    trigger: str | None = None
    class_word: str | None = None
    template: str | None = None


class FinalCaptions(NamedTuple):
    """The captions that are trained on, and the remarks and problems found while making them."""

    captions: dict[str, str]
    source: CaptionSource
    notes: list[CaptionNote]
    problems: list[str]
    wordless: bool = False
    """One of the problems is that there are neither captions nor words to write them with."""


# --- the trigger ----------------------------------------------------------------------------------------------------


def inject(caption: str, trigger: str | None, class_word: str | None) -> str:
    """The caption with the trigger in it: once, unless its author wrote it more often.

    `{trigger}` is replaced; a caption that has the trigger stays; else it goes before the first class word, else first.
    """
    if not trigger:
        return caption
    caption = caption.replace("{trigger}", trigger)
    if _word(trigger).search(caption):
        return caption
    spot = _word(class_word).search(caption) if class_word else None
    if spot is None:
        return f"{trigger}, {caption}" if caption else trigger
    end = spot.end() if _includes(trigger, class_word) else spot.start()
    return f"{caption[: spot.start()]}{trigger}{' ' if end == spot.start() else ''}{caption[end:]}"


def without_trigger(caption: str, trigger: str | None, class_word: str | None = None) -> str:
    """The caption without the trigger, as for any other object of the class, with tidy spaces and commas.

    If the trigger contains the class word, as `zwx mug` contains `mug`, the class word stays.
    """
    if not trigger:
        return caption
    stays = class_word or "" if _includes(trigger, class_word) else ""
    bare = _word(trigger).sub(lambda _: stays, caption)
    bare = re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"\s+", " ", bare))
    return re.sub(r"(,\s*)+,", ",", bare).strip(" ,")


def fill(template: str, trigger: str | None, class_word: str | None) -> str:
    """`a photo of {trigger} {class_word}` filled in; a class word that the trigger contains is not repeated."""
    spoken = "" if _includes(trigger, class_word) else class_word or ""
    return " ".join(template.replace("{trigger}", trigger or "").replace("{class_word}", spoken).split())


def default_template(kind: DatasetKind, class_word: str | None) -> str:
    """The template for images that have no caption."""
    if kind == "style":
        return f"{'{class_word}' if class_word else 'an image'} in {{trigger}} style"
    return "a photo of {trigger} {class_word}"


def mentions(caption: str, trigger: str | None) -> bool:
    """Whether the trigger occurs as a whole word, in any case."""
    return bool(trigger and _word(trigger).search(caption))


def coverage(captions: Sequence[str], trigger: str | None) -> Coverage:
    """How many captions have the trigger as a whole word; 0 without a trigger."""
    return Coverage(sum(mentions(caption, trigger) for caption in captions), len(captions))


def _word(word: str) -> re.Pattern[str]:
    """Matches it as a whole word in any case, as tokenizers that fold case see it."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _includes(trigger: str | None, class_word: str | None) -> bool:
    return bool(trigger and class_word and f" {class_word} ".lower() in f" {trigger} ".lower())


def clean_words(trigger: str | None, class_word: str | None, template: str | None) -> CaptionWords:
    """The words with tidy spaces.

    Raises:
        DataError: one is blank, or the template has an unknown placeholder.
    """
    for name, word in (("trigger", trigger), ("class word", class_word), ("template", template)):
        if word is not None and not word.strip():
            raise DataError(f"the {name} is blank", f"write a word, or leave the {name} out")
    unknown = set(re.findall(r"\{(\w*)\}", template or "")) - {"trigger", "class_word"}
    if unknown:
        raise DataError(
            f"unknown placeholder {{{min(unknown)}}} in the template", "use {trigger} and {class_word} only"
        )
    return CaptionWords(*(word and " ".join(word.split()) for word in (trigger, class_word, template)))


# --- what captions become -------------------------------------------------------------------------------------------


_IN_A_RECIPE = "keys of [data] in a recipe"


def compose(
    names: Sequence[str], captions: FoundCaptions, words: CaptionWords, allow_uncaptioned: bool
) -> FinalCaptions:
    """Captions of a raw folder: one line each, the template where there is none, the trigger in all."""
    written = {n: " ".join(captions.texts.get(n, "").split()) for n in names}
    lacking = [n for n in names if not written[n]]
    template = words.template or default_template("", words.class_word)
    nothing_to_say = not (words.trigger or words.class_word or words.template)
    stand_in = "" if nothing_to_say else fill(template, words.trigger, words.class_word)
    final = {n: inject(written[n] or stand_in, words.trigger, words.class_word) for n in names}
    problems = [] if allow_uncaptioned else _lack(names, lacking, captions, nothing_to_say)
    if not words.trigger and (braces := [n for n in names if "{trigger}" in written[n]]):
        problems.append(
            f"captions contain {{trigger}}, but no `trigger` is declared ({_IN_A_RECIPE}): {first_three(braces)}"
        )
    source: CaptionSource = captions.source if len(lacking) < len(names) else "none" if nothing_to_say else "template"
    wordless = nothing_to_say and bool(lacking) and not captions.files and not allow_uncaptioned
    return FinalCaptions(final, source, _caption_notes(written, captions, final, words), problems, wordless)


def _lack(names: Sequence[str], lacking: Sequence[str], captions: FoundCaptions, nothing_to_say: bool) -> list[str]:
    allow = "`allow_uncaptioned`"
    if not lacking:
        return []
    if len(lacking) < len(names):
        return [
            f"{len(lacking)} of {len(names)} images have no caption: {first_three(lacking)}; write them, or {allow} "
            "gives them the template"
        ]
    if captions.files:
        return [f"{captions.source}: every caption is empty; write captions, or remove the files to use the template"]
    if nothing_to_say:
        return [
            "there are no captions, and no words to write them with; declare `trigger` and `class_word` "
            f"({_IN_A_RECIPE}), or {allow} trains on empty captions"
        ]
    return []


def _caption_notes(
    written: Mapping[str, str], captions: FoundCaptions, final: Mapping[str, str], words: CaptionWords
) -> list[CaptionNote]:
    notes = []
    for name in written:
        lines = [line for line in captions.texts.get(name, "").split("\n") if line.strip()]
        if len(lines) > 1:
            notes.append(CaptionNote(name, f"the {len(lines)} lines of the caption are joined into one"))
        if words.trigger and len(_word(words.trigger).findall(final[name])) > 1:
            notes.append(CaptionNote(name, f"the caption has the trigger {words.trigger!r} more than once"))
    own = [n for n, caption in written.items() if caption]
    given = [n for n in own if words.trigger and not _word(words.trigger).search(written[n])]
    if given:
        notes.append(CaptionNote("", f"the trigger {words.trigger!r} was added to {len(given)} of {len(own)} captions"))
    if own and len(own) < len(written):
        notes.append(CaptionNote("", f"{len(written) - len(own)} of {len(written)} captions are the template"))
    if words.template and len(own) == len(written) > 0:
        notes.append(CaptionNote("", "the template is not used: every image has its caption"))
    return notes


def final_captions(names: Sequence[str], captions: FoundCaptions, words: CaptionWords) -> FinalCaptions:
    """The captions of a prepared folder, which are final as they are."""
    final = {n: " ".join(captions.texts.get(n, "").split()) for n in names}
    notes, problems = [], []
    if strays := [n for n in names if n not in captions.texts]:
        problems.append(f"{len(strays)} images are not in {TABLE}: {first_three(strays)}; add rows, or remove them")
    empty = [n for n in names if n in captions.texts and not final[n]]
    if empty and (words.trigger or words.class_word):
        problems.append(f"{len(empty)} captions are empty: {first_three(empty)}; write them")
    lacking = [n for n in names if words.trigger and not _word(words.trigger).search(final[n])]
    if names and len(lacking) == len(names):
        problems.append(
            f"the trigger {words.trigger!r} of dataset.toml occurs in no caption; add it to the captions, "
            "or prepare the dataset again"
        )
    else:
        notes = [CaptionNote(n, f"the caption lacks the trigger {words.trigger!r}") for n in lacking]
    return FinalCaptions(final, captions.source, notes, problems)
