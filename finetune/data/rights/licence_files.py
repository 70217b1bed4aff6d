"""Licences that lie beside pictures: `photo.jpg.license` or REUSE.toml (reuse.software), or `photo.license`."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.data.attributes import NO_ATTRIBUTES, Attributes
from finetune.data.folder import Rejected
from finetune.data.images.signatures import IMAGE_SUFFIXES
from finetune.data.rights.reuse_toml import REUSE_TOML, ReuseTables, read_reuse_tables
from finetune.data.text.caption_files import CAPTION_BYTES, FoundCaptions
from finetune.errors import DataError

SIDECAR = ".license"
_LICENCE_TEXT = re.compile(r"(?:.*/)?LICENSES/[^/]+\.txt")
"""REUSE's folder of the texts of licences"""
_TAG = re.compile(r"(SPDX-[\w-]+)\s*:\s*(.*)|(?:Copyright|\(c\)|\u00a9)\s*(.+)", re.IGNORECASE)
_TAGS = {
    "spdx-license-identifier": "license", "spdx-filecopyrighttext": "author", "spdx-snippetcopyrighttext": "author",
    "spdx-filecontributor": "", "spdx-filetype": "", "spdx-filecomment": "", "spdx-snippetbegin": "",
    "spdx-snippetend": "",
}  # fmt: skip
"""SPDX's tags that may stand in such a file -> what of a picture each says; "": nothing of these"""
_YEARS = re.compile(
    r"^(?:(?:\(c\)|\u00a9|copyright)\s*)*(?:\d{4}(?:\s*[-\u2013,]\s*\d{4})*,?\s+)?(?:by\s+)?", re.IGNORECASE
)


class FoundLicences(NamedTuple):
    """What licence files say, by picture."""

    by_picture: dict[str, Attributes]
    files: set[str]
    orphans: list[Rejected]
    problems: list[str]
    reuse: ReuseTables = ReuseTables(())
    pictures: Sequence[str] = ()
    """Those that REUSE.toml may speak of."""

    def beside(self, captions: FoundCaptions) -> FoundCaptions:
        """What is known of the pictures from captions' files, and from these."""
        problems, attributes = [*captions.problems, *self.problems], dict(captions.attributes)
        for name, told in self.by_picture.items():
            known = attributes.get(name, NO_ATTRIBUTES)
            if known.license and told.license and known.license.lower() != told.license.lower():
                problems.append(f"two licences for {name}: {known.license} and, in its licence file, {told.license}; "
                                "keep one")  # fmt: skip
            license, author = known.license or told.license, known.author or told.author
            attributes[name] = known._replace(license=license, author=author)
        for name in self.pictures:
            known = attributes.get(name, NO_ATTRIBUTES)
            licences, authors = self.reuse.of(name, *([own] if own else [] for own in (known.license, known.author)))
            license, author = _joined(licences), _people(authors)
            if (license, author) != (known.license, known.author):
                attributes[name] = known._replace(license=license, author=author)
        orphans, files = [*captions.orphans, *self.orphans], captions.files | self.files
        return captions._replace(attributes=attributes, problems=problems, orphans=orphans, files=files)


def find_licences(root: Path, names: Sequence[str]) -> FoundLicences:
    """Reads the licence files among the names, each of the picture whose name it has, with or without its ending."""
    problems = list[str]()
    tables = read_reuse_tables(root, names, problems)
    pictures = [n for n in names if n.lower().endswith(IMAGE_SUFFIXES)] if tables.by_file else []
    found = FoundLicences({}, {n for n in names if posixpath.basename(n) == REUSE_TOML}, [], problems, tables, pictures)
    _read_sidecars(root, names, found)
    if found.files:
        found.files.update(n for n in names if _LICENCE_TEXT.fullmatch(n))
    return found


def _read_sidecars(root: Path, names: Sequence[str], found: FoundLicences) -> None:
    sidecars = [n for n in names if n.lower().endswith(SIDECAR)]
    pictures = {n for n in names if not n.lower().endswith(SIDECAR)} if sidecars else set[str]()
    stems: dict[str, list[str]] = {}
    for name in sorted(pictures):
        stems.setdefault(posixpath.splitext(name)[0], []).append(name)
    for sidecar in sidecars:
        named = sidecar[: -len(SIDECAR)]
        owners = [named] if named in pictures else stems.get(named, [])
        if not owners:
            detail = f"there is no file {posixpath.basename(named)} beside it"
            found.orphans.append(Rejected(sidecar, "licence without image", detail))
            continue
        found.files.add(sidecar)
        try:
            told = licence_told(reading.read_text(root / sidecar, DataError, limit=CAPTION_BYTES))
        except DataError as e:
            found.problems.append(e.problem.replace(str(root / sidecar), sidecar))
            continue
        except ValueError as e:
            found.problems.append(f"{sidecar}: {e}")
            continue
        for owner in owners:
            if owner in found.by_picture:
                found.problems.append(f"two licence files for {owner}: {sidecar} is one of them; keep one")
            found.by_picture[owner] = NO_ATTRIBUTES._replace(license=told["license"], author=told["author"])


def licence_told(text: str) -> Mapping[str, str]:
    """`license` and `author` of a licence file: SPDX's tags, or the licence alone on one line.

    Raises:
        ValueError: it says no licence; says what to write.
    """
    lines = [line.strip().lstrip("#").strip() for line in text.replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line]
    said: dict[str, list[str]] = {"license": [], "author": []}
    for line in lines:
        if not (tag := _TAG.match(line)):
            continue
        if tag[3]:
            said["author"].append(tag[3])
        elif tag[1].lower() not in _TAGS:
            raise ValueError(f"{tag[1]} is not a tag of a licence file; write SPDX-License-Identifier: and the licence")
        elif what := _TAGS[tag[1].lower()]:
            said[what].append(tag[2].strip())
    if not any(said.values()) and len(lines) == 1:
        said["license"] = lines
    licences = list(dict.fromkeys(filter(None, said["license"])))
    if not licences:
        raise ValueError("it names no licence; add a line such as SPDX-License-Identifier: CC-BY-4.0")
    return {"license": _joined(licences), "author": _people(said["author"])}


def _joined(licences: Sequence[str]) -> str:
    """All of them hold."""
    return " AND ".join(f"({one})" if " " in one and len(licences) > 1 else one for one in licences)


def _people(written: Sequence[str]) -> str:
    """Copyright lines without their years."""
    return "; ".join(dict.fromkeys(filter(None, (_YEARS.sub("", one).strip() for one in written))))
