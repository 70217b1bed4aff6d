"""What pictures may be used for, and whose they are: read alike, refused where it is not what was asked for, summed up.

A dataset's own licence and author hold for the pictures that have none of their own.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from finetune.data.attributes import NO_ATTRIBUTES, Attributes
from finetune.data.folder import Rejected
from finetune.data.rights.licences import (
    Licence,
    Rights,
    allows,
    asks_credit,
    licence_url,
    read_licence,
    read_wanted,
    shown_licence,
)
from finetune.data.text.caption_files import first_three
from finetune.data.text.captions import CaptionNote
from finetune.errors import DataError
from finetune.reporting.public import LEFT_OUT, public

_E_MAIL = re.compile(r"\s*[<(\[]?\s*(?:mailto:)?[\w.+%-]+@[\w-]+(?:\.[\w-]+)+\s*[>)\]]?", re.IGNORECASE)
_SECRET = re.compile(r"(?<=://)[^/@\s]+@|[?#]\S*")
"""of an address: who logs in, and what is asked for or signed"""
AUTHORS_SHOWN, SOURCES_SHOWN = 5, 3
MOST_CREDITS_BYTES = 64 << 10
"""of the lines in an adapter's header; more are counted, and stand in its card"""


class LicenceSum(NamedTuple):
    """The pictures of one licence."""

    license: str
    """SPDX expression, or as it was written; empty without one"""
    pictures: int
    authors: tuple[str, ...]


class Cleared(NamedTuple):
    """What is known of pictures, licences read alike; those that were refused, and what should be known of it."""

    attributes: dict[str, Attributes]
    refused: list[Rejected]
    notes: list[CaptionNote]


def read_rights(license: str, author: str, required: Sequence[str]) -> Rights:
    """What is said of all pictures, and what is asked of each.

    Raises:
        DataError: a licence that is asked for is none that is known.
    """
    try:
        return Rights(license.strip(), author.strip(), read_wanted(required))
    except ValueError as e:
        raise DataError(
            f"`require_license`: {e}",
            "write SPDX identifiers (spdx.org/licenses), such as CC-BY-4.0, CC-BY-* for any version of it, or a name "
            "of your own as LicenseRef-NAME",
        ) from e


def clear_licences(names: Sequence[str], known: Mapping[str, Attributes], rights: Rights, own: bool) -> Cleared:
    """Reads the licences of pictures, and refuses those that are not among the required ones, where any are.

    own: each picture must have its licence itself, as in a dataset for which licences were asked; else that of all
    counts, and is written down for it where licences are asked for.
    """
    cleared = Cleared(dict(known), [], [])
    said, wanted, usual = dict[str, list[str]](), rights.required, read_licence(rights.license).id
    for name in names:
        attributes = known.get(name, NO_ATTRIBUTES)
        licence, author = read_licence(attributes.license), attributes.author
        if remark := _remark(attributes.license, licence):
            said.setdefault(remark, []).append(name)
        held = licence.id
        if wanted and not own:
            held, author = held or usual, author or rights.author
        if wanted and not allows(wanted, held):
            cleared.refused.append(Rejected(name, "licence", _refusal(held, wanted)))
        if asks_credit(held or usual) and not (author or rights.author):
            said.setdefault("its licence requires attribution, but no author is recorded", []).append(name)
        if (held, author) != (attributes.license, attributes.author):
            cleared.attributes[name] = attributes._replace(license=held, author=author)
    cleared.notes.extend(CaptionNote("", f"{remark}: {first_three(some)}") for remark, some in said.items())
    return cleared


def _remark(written: str, licence: Licence) -> str:
    if licence.id == written and licence.known:
        return ""
    if not licence.known:
        return f"the licence {written!r} is not an SPDX identifier, and is kept as written"
    return f"the licence {written!r} is read as {licence.id or 'none'}"


def _refusal(licence: str, wanted: Collection[str]) -> str:
    asked = f"required is {' or '.join(map(shown_licence, wanted))}"
    return f"its licence is {shown_licence(licence)}; {asked}" if licence else f"it has no licence; {asked}"


def settled(attributes: Attributes, rights: Rights) -> Attributes:
    """With the licence and author of all, where there are none."""
    license = attributes.license or read_licence(rights.license).id
    return attributes._replace(license=license, author=attributes.author or rights.author)


def sums(attributes: Iterable[Attributes], rights: Rights) -> tuple[LicenceSum, ...]:
    """Pictures by licence, the most frequent first, those without one last."""
    counts, authors = Counter[str](), dict[str, dict[str, None]]()
    for one in (settled(each, rights) for each in attributes):
        counts[one.license] += 1
        if one.author:
            authors.setdefault(one.license, {})[one.author] = None
    ordered = sorted(counts.items(), key=lambda pair: (not pair[0], -pair[1], pair[0]))
    return tuple(LicenceSum(licence, number, tuple(authors.get(licence, ()))) for licence, number in ordered)


def counted(found: Sequence[LicenceSum]) -> dict[str, int]:
    """Licence -> pictures; nothing where nothing is known."""
    return {one.license: one.pictures for one in found} if any(one.license or one.authors for one in found) else {}


def in_words(found: Sequence[LicenceSum]) -> str:
    """`12 pictures CC-BY-4.0 (Ada, Bob), 3 Proprietary, 1 without a licence`; "" where nothing is known."""
    if not counted(found):
        return ""
    parts = []
    for number, one in enumerate(found):
        shown = list(map(public_author, one.authors[:AUTHORS_SHOWN]))
        more = len(one.authors) - len(shown)
        by = f" ({', '.join(shown)}{f' and {more} more' if more else ''})" if shown else ""
        unit = (" picture" if one.pictures == 1 else " pictures") if number == 0 else ""
        parts.append(f"{one.pictures}{unit} {shown_licence(one.license)}{by}")
    return ", ".join(parts)


def credit_lines(attributes: Iterable[Attributes], rights: Rights) -> list[str]:
    """A line for each author whose licence asks to be named: who, which licence, where it can be read, and sources."""
    works: dict[tuple[str, str], list[str]] = {}
    for one in (settled(each, rights) for each in attributes):
        if asks_credit(one.license):
            works.setdefault((one.author, one.license), []).append(one.source)
    return [_credit(author, licence, sources) for (author, licence), sources in sorted(works.items())]


def _credit(author: str, licence: str, sources: Sequence[str]) -> str:
    address = licence_url(licence)
    whose = public_author(author) if author else "an author who is not recorded"
    number = f"{len(sources)} picture{'s' * (len(sources) > 1)}"
    line = f"{number} by {whose}, {public(shown_licence(licence)).text}{f' ({address})' if address else ''}"
    places = [shown for one in dict.fromkeys(sources) if one and (shown := public_source(one))]
    if places:
        more = f" and {len(places) - SOURCES_SHOWN} more" if len(places) > SOURCES_SHOWN else ""
        line += f", from {', '.join(places[:SOURCES_SHOWN])}{more}"
    return line


def bounded(lines: Sequence[str]) -> str:
    """The lines, as many as a header has room for."""
    kept, room = list[str](), MOST_CREDITS_BYTES
    for line in lines:
        room -= len(line.encode("utf-8", "replace")) + 1
        if room < 0:
            return "\n".join([*kept, f"and {len(lines) - len(kept)} more"])
        kept.append(line)
    return "\n".join(kept)


def public_author(author: str) -> str:
    """The name without an e-mail address, and without what no text for others has."""
    return public(_E_MAIL.sub("", author)).text.strip(" ,;") or LEFT_OUT


def public_source(source: str) -> str:
    """Where a picture comes from, without who logged in there, what was signed, or where it lies on this machine."""
    return public(_E_MAIL.sub("", _SECRET.sub("", source))).text.strip(" ,;")
