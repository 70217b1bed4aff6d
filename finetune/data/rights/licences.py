"""Licences of pictures: SPDX identifiers, the other ways in which people write them, and what each asks for.

SPDX: spdx.org/licenses. Identifiers are compared without case; a text that is none stays as it was written.
"""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

CC = "https://creativecommons.org"
NOT_SPDX = "LicenseRef-"
"""how SPDX marks what it does not list"""

_CC_WORDS = (
    (r"attribution", "by"), (r"non[ -]?commercial", "nc"), (r"no[ -]?deriv(ative)?s?", "nd"),
    (r"share[ -]?alike", "sa"), (r"creative commons", "cc"),
    (r" (international|unported|generic|universal|deed|zero)(?= |$)", ""),
)  # fmt: skip
"""how Creative Commons spell out their licences -> the letters that stand for it"""
_CC_URL = re.compile(r"^(?:https?://)?(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(.*)$")
_CC_TEXT = re.compile(r"^(?:cc[ -]+)?((?:by|nc|nd|sa)(?:[ -]+(?:by|nc|nd|sa))*)[ -]+v?([\d.]+)(?:[ -]+([a-z]{2,3}))?$")
_CC_ZERO = re.compile(r"^cc[ -]*0?[ -]*(?:v?1\.0)?$")
_VERSION = re.compile(r"^/(\d\.\d)(?:/([a-z]{2,3}))?(?:/|$)")
_NOT_LISTED = {
    "unsplash": "Unsplash", "unsplash.com": "Unsplash", "pexels": "Pexels", "pexels.com": "Pexels",
    "pixabay": "Pixabay", "pixabay content": "Pixabay", "pixabay.com": "Pixabay", "proprietary": "Proprietary",
    "all rights reserved": "Proprietary", "copyrighted": "Proprietary", "public domain": "Public-Domain",
    "publicdomain": "Public-Domain", "public-domain": "Public-Domain",
}  # fmt: skip
"""licences without an SPDX identifier, as people name them -> their name where SPDX marks it"""
_OTHER_NAMES = {"public domain mark": "CC-PDM-1.0", "public domain mark 1.0": "CC-PDM-1.0", "apache 2.0": "Apache-2.0",
                "apache license 2.0": "Apache-2.0", "apache license, version 2.0": "Apache-2.0"}  # fmt: skip
_NOTHING = {"", "none", "noassertion", "unknown", "n/a", "na", "null", "-", "?", "no"}
_TOKENS = re.compile(r"\(|\)|[^\s()]+")
_ASKS_CREDIT = re.compile(r"^(CC-BY(-.*)?|ODC-By.*|OGL-.*|GFDL-.*|MIT|Apache-.*|BSD-.*|LAL-.*|FreeImage)$")


class Rights(NamedTuple):
    """The licence and author of pictures that have none of their own, and the licences that are asked for."""

    license: str = ""
    author: str = ""
    required: tuple[str, ...] = ()
    """As `read_wanted` gives them; empty: none is asked for."""


class Licence(NamedTuple):
    """A licence as it was written, read."""

    id: str
    """the SPDX expression, or the text itself; "" where it says that there is none"""
    known: bool
    """It is an SPDX expression, or a licence that is known by a word."""


@lru_cache(1024)
def read_licence(text: str) -> Licence:
    """`CC BY 4.0`, `cc-by-4.0` and https://creativecommons.org/licenses/by/4.0/ are CC-BY-4.0."""
    written = " ".join(text.split())
    plain = re.sub(r"[\s_]+", " ", written.lower()).strip(" .")
    plain = re.sub(r"^(licen[cs]ed )?(under )?(the )?|(?<!^no) licen[cs]e$", "", plain)
    if plain in _NOTHING or plain in ("no license", "no licence"):
        return Licence("", True)
    if word := _NOT_LISTED.get(plain.removeprefix(NOT_SPDX.lower())):
        return Licence(NOT_SPDX + word, True)
    for named in (_OTHER_NAMES.get(plain) or _creative_commons(plain), written, plain):
        try:
            return Licence(str(canonicalize_license_expression(named)), True)
        except InvalidLicenseExpression:
            continue
    return Licence(written, False)


def _creative_commons(plain: str) -> str:
    """The identifier of a Creative Commons licence by its address or name, in lower case; "" of other texts."""
    if address := _CC_URL.match(plain):
        kind, parts, rest = address.groups()
        version = _VERSION.match(rest)
        if kind == "publicdomain":
            return {"zero": "CC0-1.0", "mark": "CC-PDM-1.0"}.get(parts, "")
        return _cc(parts, *version.groups()) if version else ""
    for word, letters in _CC_WORDS:
        plain = re.sub(word, letters, plain)
    if _CC_ZERO.match(plain) and "0" in plain:
        return "CC0-1.0"
    found = _CC_TEXT.match(plain)
    return _cc(*found.groups()) if found else ""


def _cc(parts: str, version: str, port: str | None) -> str:
    """CC-BY-SA-3.0-DE. Without a version there is none, as each is another licence."""
    words = [word.upper() for word in re.split(r"[ -]+", parts) if word]
    return "-".join(["CC", *words, version, *([port.upper()] if port else [])])


# --- what is asked for ----------------------------------------------------------------------------------------------


def read_wanted(written: Collection[str]) -> tuple[str, ...]:
    """Licences that are asked for, several to a text where commas part them; `CC-BY-*` is CC-BY in any version.

    Raises:
        ValueError: one is no licence that is known.
    """
    wanted = []
    for one in (part.strip() for text in written for part in text.split(",")):
        if not one:
            continue
        family = one.removesuffix("*").removesuffix("-")
        found = read_licence(f"{family}-4.0" if one.endswith("*") else one)
        if one.endswith("*") and not found.known:
            found = read_licence(f"{family}-1.0")
        if not (found.known and found.id):
            raise ValueError(f"{one!r} is not a known licence")
        wanted.append(f"{found.id.rpartition('-')[0]}-*" if one.endswith("*") else found.id)
    return tuple(dict.fromkeys(wanted))


def allows(wanted: Collection[str], licence: str) -> bool:
    """Whether a picture's licence is among those wanted: of `A OR B` one of them, of `A AND B` both."""
    tokens = _TOKENS.findall(licence)
    if not tokens:
        return False
    try:
        found = _either(tokens, wanted)
    except IndexError:  # no expression: one licence, as it was written
        return licence in wanted
    return found if not tokens else licence in wanted


def _either(tokens: list[str], wanted: Collection[str]) -> bool:
    found = _both(tokens, wanted)
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        found = _both(tokens, wanted) or found
    return found


def _both(tokens: list[str], wanted: Collection[str]) -> bool:
    found = _one(tokens, wanted)
    while tokens and tokens[0] == "AND":
        tokens.pop(0)
        found = _one(tokens, wanted) and found
    return found


def _one(tokens: list[str], wanted: Collection[str]) -> bool:
    token = tokens.pop(0)
    if token == "(":
        found = _either(tokens, wanted)
        tokens.pop(0)
        return found
    if tokens[:1] == ["WITH"]:
        token = " ".join([token, tokens.pop(0), tokens.pop(0)])
    return any(_is(token, one) for one in wanted)


def _is(licence: str, wanted: str) -> bool:
    """`CC-BY-*` is CC-BY in any version, of any country, and no CC-BY-NC."""
    if not wanted.endswith("-*"):
        return licence.lower() == wanted.lower()
    return re.fullmatch(rf"{re.escape(wanted[:-1])}\d[\d.]*(-[A-Z]{{2,3}})?", licence, re.IGNORECASE) is not None


# --- what others are told -------------------------------------------------------------------------------------------


def shown_licence(licence: str) -> str:
    """For people: `Unsplash` for LicenseRef-Unsplash."""
    return licence.removeprefix(NOT_SPDX) or "without a licence"


def asks_credit(licence: str) -> bool:
    """Whether a licence, or one in its expression, asks to name the author."""
    return any(_ASKS_CREDIT.match(token) for token in _TOKENS.findall(licence))


def licence_url(licence: str) -> str:
    """Where the licence can be read; "" where that is not known."""
    found = re.fullmatch(r"CC-(BY[A-Z-]*?)-(\d\.\d)(?:-([A-Z]{2,3}))?", licence)
    if found:
        port = f"{found[3].lower()}/" if found[3] else ""
        return f"{CC}/licenses/{found[1].lower()}/{found[2]}/{port}"
    if licence in ("CC0-1.0", "CC-PDM-1.0"):
        return f"{CC}/publicdomain/{'zero' if licence == 'CC0-1.0' else 'mark'}/1.0/"
    plain = not licence.startswith(NOT_SPDX) and re.fullmatch(r"[\w.+-]+", licence)
    return f"https://spdx.org/licenses/{licence}.html" if plain and read_licence(licence).known else ""
