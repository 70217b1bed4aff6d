"""Captions: the words that they are written with, the trigger in them, and what is trained on in the end."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from finetune.choices import CaptionLines, CaptionsFrom
from finetune.data.text import caption_choices, wording
from finetune.data.text.caption_files import TABLE, CaptionSource, FoundCaptions, first_three
from finetune.data.text.prompts import includes, whole_word
from finetune.data.text.wildcards import wildcard_fault, write_out
from finetune.data.text.wording import CaptionOrigin, CaptionWords, DatasetKind
from finetune.errors import DataError
from finetune.recipe.placeholders import prompt_fault


class CaptionNote(NamedTuple):
    """A remark on one file, such as a conversion; it is on the whole dataset when `file` is empty."""

    file: str
    text: str


class Coverage(NamedTuple):
    """How many captions have the trigger, out of how many."""

    having: int
    of: int


class FinalCaptions(NamedTuple):
    """The captions that are trained on, and the remarks and problems found while making them."""

    captions: dict[str, str]
    origins: dict[str, CaptionOrigin]
    source: CaptionSource
    notes: list[CaptionNote]
    problems: list[str]
    more: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Picture -> its further captions, shown by turns with the first."""
    wordless: bool = False
    """One of the problems is that words are not declared which captions need."""


# --- the trigger ----------------------------------------------------------------------------------------------------


def inject(caption: str, trigger: str | None, class_word: str | None) -> str:
    """The caption with the trigger in it: once, unless its author wrote it more often.

    `{trigger}` is replaced; a caption that has the trigger stays; else it goes before the first class word, else first.
    """
    if not trigger:
        return caption
    caption = caption.replace("{trigger}", trigger)
    if whole_word(trigger).search(caption):
        return caption
    spot = whole_word(class_word).search(caption) if class_word else None
    if spot is None:
        return f"{trigger}, {caption}" if caption else trigger
    end = spot.end() if includes(trigger, class_word) else spot.start()
    return f"{caption[: spot.start()]}{trigger}{' ' if end == spot.start() else ''}{caption[end:]}"


def without_trigger(caption: str, trigger: str | None, class_word: str | None = None) -> str:
    """The caption without the trigger, as for any other object of the class, with tidy spaces and commas.

    If the trigger contains the class word, as `zwx mug` contains `mug`, the class word stays.
    """
    if not trigger:
        return caption
    stays = class_word or "" if includes(trigger, class_word) else ""
    bare = whole_word(trigger).sub(lambda _: stays, caption)
    bare = re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"\s+", " ", bare))
    return re.sub(r"(,\s*)+,", ",", bare).strip(" ,")


def mentions(caption: str, trigger: str | None) -> bool:
    """Whether the trigger occurs as a whole word, in any case."""
    return bool(trigger and whole_word(trigger).search(caption))


def coverage(captions: Sequence[str], trigger: str | None) -> Coverage:
    """How many captions have the trigger as a whole word; 0 without a trigger."""
    return Coverage(sum(mentions(caption, trigger) for caption in captions), len(captions))


def clean_words(
    trigger: str | None, class_word: str | None, template: str | None, kind: DatasetKind = "",
    captions_from: CaptionsFrom = "auto", allow_uncaptioned: bool = False, caption_lines: CaptionLines = "each",
) -> CaptionWords:  # fmt: skip
    """The words with tidy spaces.

    Raises:
        DataError: one is blank, or the template has an unknown placeholder, or one that no word is given for.
    """
    for name, word in (("trigger", trigger), ("class word", class_word), ("template", template)):
        if word is not None and not word.strip():
            raise DataError(f"the {name} is blank", f"write a word, or leave the {name} out")
    unknown = set(re.findall(r"\{(\w*)\}", template or "")) - {"trigger", "class_word"}
    if unknown:
        raise DataError(
            f"unknown placeholder {{{min(unknown)}}} in the template", "use {trigger} and {class_word} only"
        )
    if template and (wrong := wildcard_fault(template)):
        raise DataError(f"the template {template!r}: {wrong}", "write {one|another}, or a word alone")
    for one in write_out(template or ""):
        if fault := prompt_fault(one):
            raise DataError(f"the template {template!r}: {fault.problem}", fault.remedy)
    given = {"trigger": trigger, "class_word": class_word}
    empty = [name for name, word in given.items() if not word and f"{{{name}}}" in (template or "")]
    if empty:
        raise DataError(
            f"the template {template!r} asks for {{{empty[0]}}}, and there is no {empty[0].replace('_', ' ')}",
            f"give `{empty[0]}`, or leave it out of the template",
        )
    tidy = [word and " ".join(word.split()) for word in (trigger, class_word, template)]
    return CaptionWords(tidy[0], tidy[1], tidy[2], kind, captions_from, allow_uncaptioned, caption_lines)


# --- what captions become -------------------------------------------------------------------------------------------


_IN_A_RECIPE = "keys of [data] in a recipe"


def compose(names: Sequence[str], found: FoundCaptions, words: CaptionWords) -> FinalCaptions:
    """Captions of a raw folder: one line each, where there is none from the file's name or by the template, the trigger
    in all."""
    choices = caption_choices.read_choices(names, found, words)
    written = {n: choices.first(n) for n in names}
    lacking = [n for n in names if not written[n]]
    folders = _of_folders(lacking, found, words)
    lacking = [n for n in lacking if n not in folders]
    subjects = _subjects(lacking, words)
    stand_in = next(iter(wording.templates(words)), "")
    final, origins = dict[str, str](), dict[str, CaptionOrigin]()
    for n in names:
        origins[n], final[n] = _caption(n, written, folders, subjects, words) or ("template", stand_in)
    origins |= {n: found.origins[n] for n in names if written[n] and n in found.origins}
    more = _more({n: [with_trigger(one, words) for one in choices.texts[n][1:]] for n in names}, final)
    problems = [] if words.allow_uncaptioned else _lack(names, lacking, found, words, subjects)
    problems += choices.problems
    problems += _alike(final, words)
    braces = [] if words.trigger else [n for n in names if "{trigger}" in " ".join(choices.texts[n])]
    if braces:
        problems.append(
            f"captions contain {{trigger}}, but no `trigger` is declared ({_IN_A_RECIPE}): {first_three(braces)}"
        )
    mute = found.source == "none" and len(subjects) < len(lacking) and not words.allow_uncaptioned
    wordless = bool(braces) or (mute and (words.none or _is_nameless(words)))
    notes = [CaptionNote(*one) for one in choices.remarks] + _caption_notes(choices.texts, final, more, words)
    notes += _origin_notes(final, origins)
    return FinalCaptions(final, origins, _source(found, origins, words), notes, problems, more, wordless)


def _more(texts: Mapping[str, Sequence[str]], final: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Picture -> its further captions, each once, without the first."""
    rest = {n: tuple(one for one in dict.fromkeys(some) if one and one != final[n]) for n, some in texts.items()}
    return {n: some for n, some in rest.items() if some}


def _caption(
    name: str, written: Mapping[str, str], folders: Mapping[str, str], subjects: Mapping[str, str], words: CaptionWords
) -> tuple[CaptionOrigin, str] | None:
    """Who says what of a picture; None: nobody anything."""
    if written[name]:
        return "written", with_trigger(written[name], words)
    if name in folders:
        return "folder", with_trigger(folders[name], words)
    return ("filename", with_trigger(wording.from_filename(subjects[name], words), words)) if name in subjects else None


def _of_folders(lacking: Sequence[str], found: FoundCaptions, words: CaptionWords) -> dict[str, str]:
    """What names of folders say of pictures that nobody captioned, unless other captions were asked for."""
    if words.captions_from in ("none", "filename") or words.template:
        return {}
    return {n: found.stand_ins[n] for n in lacking if n in found.stand_ins}


def with_trigger(caption: str, words: CaptionWords) -> str:
    """The caption with the trigger in it: of a style as `..., sks style`, else as `inject` puts it."""
    if words.shown != "style" or not words.trigger or not caption or "{trigger}" in caption:
        return inject(caption, words.trigger, words.class_word)
    return caption if mentions(caption, words.trigger) else f"{caption.rstrip(' ,.')}, {words.trigger} style"


def _subjects(lacking: Sequence[str], words: CaptionWords) -> dict[str, str]:
    """What file names say, by picture; under `auto` nothing, unless most of them say something and not all the same."""
    if words.captions_from in ("none", "description") or words.template:
        return {}
    said = {n: subject for n in lacking if (subject := wording.words_of(n)) and subject != words.class_word}
    if words.captions_from == "auto" and (2 * len(said) < len(lacking) or len(set(said.values())) < min(len(said), 2)):
        return {}
    return said


def _source(found: FoundCaptions, origins: Mapping[str, CaptionOrigin], words: CaptionWords) -> CaptionSource:
    by = Counter(origins.values())
    if found.source != "none" and (by["written"] or by["model"]):
        return found.source
    return next((source for source, origin in _BY_NAME.items() if by[origin]), "none" if words.none else "template")


_BY_NAME: dict[CaptionSource, CaptionOrigin] = {"folder names": "folder", "file names": "filename"}


def _lack(
    names: Sequence[str], lacking: Sequence[str], found: FoundCaptions, words: CaptionWords, subjects: Mapping[str, str]
) -> list[str]:
    """What is wrong with pictures that nobody captioned."""
    allow = "`allow_uncaptioned`"
    mute = [n for n in lacking if n not in subjects]
    if not lacking:
        return []
    if words.captions_from == "filename" and mute:
        return [f"{len(mute)} of {len(names)} file names hold no words: {first_three(mute)}; rename or caption them"]
    if len(lacking) < len(names):
        return [
            f"{len(lacking)} of {len(names)} images have no caption: {first_three(lacking)}; write them, or "
            f"give {allow} to use the template for them"
        ]
    if found.source != "none":
        return [f"{found.source}: every caption is empty; write captions, or remove the files to use the template"]
    if words.none and mute:
        return [
            "there are no captions, and no trigger or class word to make them from; give `trigger` and `class_word` "
            f"({_IN_A_RECIPE}), or {allow} to train on empty captions"
        ]
    if _is_nameless(words):
        return [
            f"there are no captions, and nothing says what {words.trigger!r} is; give the "
            "`class_word` of a product, such as mug, or set `kind` to style"
        ]
    return []


def _is_nameless(words: CaptionWords) -> bool:
    """Nothing says what the trigger is."""
    return not (words.shown or words.template or words.class_word or words.none)


def _alike(final: Mapping[str, str], words: CaptionWords) -> list[str]:
    """A style is what pictures have in common *beside* what they show: without words for that it cannot be told."""
    if words.shown != "style" or words.allow_uncaptioned or len(final) < 2 or len(set(final.values())) > 1:
        return []
    caption = next(iter(final.values()))
    return [
        f"all {len(final)} captions are {caption!r}: a style is learnt only when captions say what each picture shows "
        f'("a bell, {words.trigger} style"); caption the pictures, or name the files after what they show (bell.png)'
    ]


def _origin_notes(final: Mapping[str, str], origins: Mapping[str, CaptionOrigin]) -> list[CaptionNote]:
    """Who wrote the captions, where it was not a person, with an example."""
    notes = []
    named = [n for n, origin in origins.items() if origin == "filename"]
    if named:
        notes.append(
            CaptionNote("", f"{len(named)} of {len(final)} captions come from file names, such as "
                            f"{named[0].rpartition('/')[2]} -> {final[named[0]]!r}")
        )  # fmt: skip
    folders = [n for n, origin in origins.items() if origin == "folder"]
    if folders:
        notes.append(CaptionNote("", f"{len(folders)} of {len(final)} captions come from folder names, such as "
                                 f"{folders[0]} -> {final[folders[0]]!r}"))  # fmt: skip
    filled = [n for n, origin in origins.items() if origin == "template" and final[n]]
    if filled:
        notes.append(
            CaptionNote("", f"{len(filled)} of {len(final)} captions come from the template, in several wordings")
        )
    return notes


def _caption_notes(
    written: Mapping[str, Sequence[str]], final: Mapping[str, str], more: Mapping[str, Sequence[str]],
    words: CaptionWords,
) -> list[CaptionNote]:  # fmt: skip
    notes = []
    for name in written:
        several = [len(whole_word(words.trigger or "").findall(one)) > 1 for one in (final[name], *more.get(name, ()))]
        if words.trigger and any(several):
            notes.append(CaptionNote(name, f"the caption has the trigger {words.trigger!r} more than once"))
    own = [caption for some in written.values() for caption in some]
    given = [c for c in own if words.trigger and "{trigger}" not in c and not whole_word(words.trigger).search(c)]
    if given:
        notes.append(CaptionNote("", f"the trigger {words.trigger!r} was added to {len(given)} of {len(own)} captions"))
    if words.template and written and all(written.values()):
        notes.append(CaptionNote("", "the template is not used: every image has a caption"))
    return notes


def final_captions(names: Sequence[str], captions: FoundCaptions, words: CaptionWords) -> FinalCaptions:
    """The captions of a prepared folder, which are final as they are."""
    choices = caption_choices.read_choices(names, captions, words)
    final = {n: choices.first(n) for n in names}
    more = _more({n: choices.texts[n][1:] for n in names}, final)
    notes, problems = list[CaptionNote](), list(choices.problems)
    if strays := [n for n in names if n not in captions.texts]:
        problems.append(f"{len(strays)} images are not in {TABLE}: {first_three(strays)}; add rows, or remove them")
    empty = [n for n in names if n in captions.texts and not final[n]]
    if empty and (words.trigger or words.class_word):
        problems.append(f"{len(empty)} captions are empty: {first_three(empty)}; write them")
    lacking = [n for n in names if words.trigger and not whole_word(words.trigger).search(final[n])]
    if names and len(lacking) == len(names):
        problems.append(
            f"the trigger {words.trigger!r} of dataset.toml occurs in no caption; add it to the captions, "
            "or prepare the dataset again"
        )
    else:
        notes = [CaptionNote(n, f"the caption lacks the trigger {words.trigger!r}") for n in lacking]
        bare = [
            n for n, some in more.items() if words.trigger and not all(mentions(one, words.trigger) for one in some)
        ]
        notes += [CaptionNote(n, f"one of its further captions lacks the trigger {words.trigger!r}") for n in bare]
    problems += _alike(final, words)
    origins = {n: captions.origins.get(n, "written") for n in names}
    notes += [CaptionNote(*one) for one in choices.remarks]
    return FinalCaptions(final, origins, captions.source, notes + _origin_notes(final, origins), problems, more)
