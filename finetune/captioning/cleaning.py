"""What a model says of a picture, made into a caption: the setting of a product, the content of a style."""

import re

from finetune.captioning.captioner import Answer
from finetune.data.text.prompts import expand
from finetune.data.text.wording import CaptionWords

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
_PLACE = re.compile(
    r"\b(on|in|at|against|beside|under|underneath|near|inside|outside|behind|between|among|above|below|over|by|next to"
    r"|in front of|surrounded by|hanging from)\s+(?!(?:it|its|them|this|that)\b"
    r"|(?:the|this|an?)\s+(?:image|picture|photo|photograph|scene|background|foreground|middle|cent(?:er|re))\b)",
    re.IGNORECASE,
)
"""not `flowers in it`, `in the picture`: these say nothing of where the product is"""
_WITH = re.compile(r"\bwith\s+", re.IGNORECASE)
_MEDIA = (
    r"(?:illustration|drawing|icon|image|picture|photo|photograph|painting|sketch|rendering|render|graphic|logo|cartoon"
    r"|clip\s?art|line art|vector|doodle|design|depiction|artwork|symbol|sticker)"
)
_ADJECTIVE = r"(?:(?!(?:with|of|in|on|at|by|near|holding|a|an|the)\b)[\w-]+,?\s+)"
_NOTHING = frozenset(
    "a an the and of simple flat plain white black colorful colourful minimalist minimal stylized stylised line vector "
    "digital hand-drawn cute modern background backdrop illustration drawing icon image picture design art".split()
)
"""words that say nothing of what a picture shows"""
_SAYS = re.compile(
    rf"^(?:there is|there's|this is|it is|it's|(?:the|this|an?)\s+{_ADJECTIVE}{{0,4}}{_MEDIA}\s+"
    r"(?:shows|depicts|features|displays|contains))\s+", re.IGNORECASE
)  # fmt: skip
_MEDIUM = re.compile(rf"^(?:an?|the)?\s*{_ADJECTIVE}{{0,5}}?{_MEDIA}\s+(?:of|showing|depicting)\s+", re.IGNORECASE)
_MEDIUM_AFTER = re.compile(rf"(?<=\w)\s+{_MEDIA}s?(?=,|$)", re.IGNORECASE)
_GROUND = re.compile(
    r",?\s*\b(?:on|in|against|with|over|and|set against)\s+(?:(?:an?|the|its)\s+)?(?:[\w-]+,?\s+){0,4}?"
    r"(?:background|backdrop|ground)\b", re.IGNORECASE
)  # fmt: skip
_MANNER = re.compile(
    rf",?\s*\b(?:drawn\s+|rendered\s+|made\s+)?in\s+(?:an?|the)\s+(?:[\w-]+,?\s+){{0,4}}?(?:style|manner)\b.*$"
    rf"|,\s*(?:[\w-]+\s+){{0,3}}(?:{_MEDIA}|style|art)\b",
    re.IGNORECASE,
)


def cleaned(text: str, words: CaptionWords) -> Answer:
    """The answer without what the trigger should absorb, by what the pictures show; other kinds keep all of it."""
    if words.shown == "product":
        return Answer(setting(text, words))
    if words.shown == "style":
        kept = content(text)
        return Answer(kept or text, "" if kept else "says nothing but medium and ground")
    return Answer(_uncapitalised(text.rstrip(" .")))


def setting(text: str, words: CaptionWords) -> str:
    """`A white mug sits on a wooden table.` -> `a sks mug on a wooden table`: the product's own looks are left out.

    From the first word of place; `with` counts where no other does, as what a product is decorated with is its own.
    """
    named = expand("a {trigger} {class_word}" if words.class_word else "{trigger}", words.trigger, words.class_word)
    found = _PLACE.search(text) or _WITH.search(text)
    if found is None:
        return named
    where = _SENTENCE.split(text[found.start() :])[0].rstrip(" .!?;,")
    return f"{named} {_uncapitalised(where)}"


def content(text: str) -> str:
    """`An illustration of a bell on a white background.` -> `a bell`; empty when nothing but medium and ground is said.

    The first sentence that says more than these.
    """
    return next(filter(None, map(_content_of, _SENTENCE.split(text))), "")


def _content_of(sentence: str) -> str:
    kept = _GROUND.sub("", _MEDIUM.sub("", _SAYS.sub("", sentence.strip(" .!?;"))))
    kept = _MEDIUM_AFTER.sub("", _MANNER.sub("", kept)).strip(" ,.")
    said = {word.lower() for word in re.findall(r"[\w-]+", kept)}
    return _uncapitalised(kept) if said - _NOTHING else ""


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]
