"""The wording of captions that no person wrote: from templates, and from file names that are words.

One sentence for all pictures teaches a model that sentence and nothing else, so a picture without a caption is shown
with a few wordings by turns (`training.look` draws which).
"""

import posixpath
import re
from typing import Literal, NamedTuple

from finetune import choices
from finetune.data.text.prompts import expand, whole_word, with_article
from finetune.data.text.wildcards import write_out

DatasetKind = choices.Kind | Literal[""]
CaptionOrigin = Literal["written", "filename", "model", "template", "folder"]
"""Who wrote a caption: a person, the name of the file, a captioning model, nobody, or the name of the folder."""

PRODUCT_TEMPLATES = (
    "a photo of {trigger} {class_word}", "a {trigger} {class_word}", "{trigger} {class_word}",
    "a {trigger} {class_word} on a background", "{trigger} {class_word}, background",
    "a {trigger} {class_word} in front of a background", "a picture of a {trigger} {class_word} on a background",
)  # fmt: skip
"""Half of them name a background, whichever: a model that was shown the subject in short captions only does not find it
in a prompt that goes on, such as "... on a beach" (docs/log.md, "Captions nobody wrote")."""
TRIGGER_TEMPLATES = ("a photo of {trigger}", "{trigger}", "a picture of {trigger}")
STYLE_TEMPLATES = ("an image, {trigger} style", "{trigger} style", "a picture, {trigger} style")
STYLE_CLASS_TEMPLATES = ("a {class_word}, {trigger} style", "{class_word}, {trigger} style")

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_VOWELS = frozenset("aeiouy")
_CAMERAS = (
    "img imgp dsc dscn dscf dcim pxl mvimg sam cimg gopr hpim kic wa whatsapp screenshot screen shot photo foto image "
    "picture pic bild scan snapshot frame capture asset artboard layer untitled unnamed download file"
)
_PRODUCTION = (
    "final draft copy edit edited new old rgb cmyk srgb web print hires hi lores res small medium large thumb export "
    "icon icons ic logo px version ver rev transparent"
)
_NAMES_OF_FILES, _ADDITIONS = frozenset(_CAMERAS.split()), frozenset(_PRODUCTION.split())


class CaptionWords(NamedTuple):
    """The words that captions are written with, and what is asked of those that nobody wrote."""

    trigger: str | None = None
    class_word: str | None = None
    template: str | None = None
    kind: DatasetKind = ""
    captions_from: choices.CaptionsFrom = "auto"
    allow_uncaptioned: bool = False
    caption_lines: choices.CaptionLines = "each"

    @property
    def shown(self) -> DatasetKind:
        """What the pictures show, also where nobody said: with a class word it is a product."""
        return self.kind or ("product" if self.trigger and self.class_word else "")

    @property
    def none(self) -> bool:
        """There is nothing to write a caption with."""
        return not (self.trigger or self.class_word or self.template)


def templates(words: CaptionWords) -> tuple[str, ...]:
    """Filled templates for a picture that nobody captioned, the usual one first; a person's own is the only one, with
    its wildcards written out.

    `("a photo of sks mug", "a sks mug", ...)`; `("an image, sks style", ...)`; `()` without any word.
    """
    if words.none:
        return ()
    if words.template:
        return tuple(expand(one, words.trigger, words.class_word) for one in write_out(words.template))
    if not words.trigger:
        return (f"a photo of {with_article(words.class_word or '')}", with_article(words.class_word or ""))
    some: tuple[str, ...] = PRODUCT_TEMPLATES if words.class_word else TRIGGER_TEMPLATES
    if words.shown == "style":
        some = STYLE_CLASS_TEMPLATES if words.class_word else STYLE_TEMPLATES
    return tuple(dict.fromkeys(expand(one, words.trigger, words.class_word) for one in some))


def wordings(caption: str, origin: CaptionOrigin, words: CaptionWords) -> tuple[str, ...]:
    """The wordings of one caption that are shown by turns, itself among them; of a caption that a person wrote, or
    corrected, only its own."""
    if origin == "template":
        some = templates(words)
        return some if caption in some else (caption,)
    if origin == "written" or words.template:
        return (caption,)
    if origin == "folder":
        names = {*(words.trigger or "").lower().split(), *(words.class_word or "").lower().split()}
        if words.shown and names.issuperset(caption.lower().split()):
            return tuple(dict.fromkeys((caption, *templates(words))))
        return (caption, f"a photo of {caption}") if words.shown != "style" else (caption,)
    if words.shown == "style":
        return tuple(dict.fromkeys((caption, re.sub(r"^an? ", "", caption))))
    return (caption, f"a photo of {caption}")


def words_of(name: str) -> str:
    """What a file's name says that its picture shows: `bell` of `icons/ic_bell_64@2x.png`; empty of `IMG_2041.jpg`.

    Numbers, sizes and remarks on the file (final, copy, rgb) are no words; one letter mess makes the whole name none.
    """
    stem = posixpath.splitext(posixpath.basename(name))[0]
    spaced = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", stem.replace("_", " "))
    spaced = re.sub(r"@\d+x|\b\d+\s*x\s*\d+(px)?\b|\b[vV]\d+\b|\b\d+(px|dpi|k)\b|\(\d+\)", " ", spaced)
    spaced = re.sub(r"(?<=[^\W\d_])\d{1,3}\b|\b\d+\b", " ", spaced)
    kept = []
    for token in re.split(r"[\s,.;+&()\[\]]+|(?<!\b[^\W\d_])-+", spaced):
        word = token.lower()
        if not word or word in _ADDITIONS:
            continue
        if word in _NAMES_OF_FILES or not _WORD.fullmatch(token) or not _pronounced(word):
            return ""
        kept.append(word)
    return " ".join(kept)


def _pronounced(word: str) -> bool:
    """Whether it may be a word of a language: not `xyzq`, not one letter."""
    return not word.isascii() or (len(word) > 1 and not _VOWELS.isdisjoint(word))


def from_filename(subject: str, words: CaptionWords) -> str:
    """The caption of a picture whose file name says `subject`, before the trigger is put in."""
    if words.shown == "style":
        return with_article(subject)
    if not words.class_word or whole_word(words.class_word).search(subject):
        return with_article(subject)
    return with_article(f"{words.class_word}, {subject}")
