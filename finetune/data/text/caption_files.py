"""Caption files: sidecars beside the images, and tables that list them, in the forms of any trainer.

What looks like captions and was not understood is a problem while pictures lack a caption: they would be given a
template in place of what their author wrote. Otherwise such a file is rejected like every file that is no image.
"""

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast, get_args

from finetune.data.attributes import NO_ATTRIBUTES, Attributes, read_attributes
from finetune.data.folder import Rejected
from finetune.data.images.signatures import IMAGE_SUFFIXES
from finetune.data.text.columns import WANTED_CAPTIONS, WANTED_FILES, TableColumns, Unclear, find_columns
from finetune.data.text.sidecars import JSON, SIDECARS, Owners, Sidecars, read_sidecars, unknown_sidecars
from finetune.data.text.tables import TABLE, TableRow, is_reserved, may_be_table, read_rows
from finetune.data.text.texts import CAPTION_BYTES, prose
from finetune.data.text.wording import CaptionOrigin

__all__ = ["CAPTION_BYTES", "TABLE", "CaptionSource", "FoundCaptions", "find_captions", "first_three"]

CaptionSource = str
"""The table's name, sidecars, both of them, descriptions, folder names, file names, template, several sources or
none"""

_ORIGINS = get_args(CaptionOrigin)
_LOOKED_FOR = 20
"""pictures whose names are looked for in a text"""
_MANY_ORPHANS = 2
"""text files without a picture, at least, that are taken for captions of pictures that have none"""


class FoundCaptions(NamedTuple):
    """The captions that a folder holds, as their author wrote them."""

    source: CaptionSource
    texts: dict[str, str]
    """Image -> its written caption, which may be empty."""
    files: set[str]
    """The files that carry captions: sidecars that belong to an image, and tables."""
    orphans: list[Rejected]
    problems: list[str]
    origins: dict[str, CaptionOrigin]
    """Image -> who wrote its caption, where a table says so in its column `caption_by`."""
    attributes: dict[str, Attributes]
    """Image -> what else is known of it, where something is."""
    notes: tuple[str, ...] = ()
    """What was understood of files that are not as they are usually."""
    stand_ins: Mapping[str, str] = {}
    """Image -> what its folder's name says, where nobody captioned it."""


def find_captions(root: Path, names: Sequence[str]) -> FoundCaptions:
    """Reads the sidecars and tables among the names; the others are taken for images."""
    pictures = [n for n in names if not _may_carry(n)]
    owners = Owners(pictures)
    aside = [n for n in names if n.lower().endswith(SIDECARS) or (n.lower().endswith(JSON) and owners.of(n))]
    beside = read_sidecars(root, aside, owners)
    tables = [n for n in names if may_be_table(n) and n not in beside.files and n not in beside.unclear]
    listed = _Listed(_Pictures(pictures))
    for table in tables:
        listed.read(root, table)
    orphans = [n for n in beside.orphans if not _is_table_in_disguise(root, n, listed)]
    found = _together(beside, listed)
    lacking = {p for p in pictures if p not in found.texts and posixpath.splitext(p)[1].lower() in IMAGE_SUFFIXES}
    unread = [*_unclear(beside, owners, lacking), *(p for p in listed.unclear if lacking)]
    strange = [n for n in names if n not in found.files and posixpath.splitext(n)[1].lower() not in IMAGE_SUFFIXES]
    strange = [n for n in strange if not n.lower().endswith(SIDECARS) and not may_be_table(n)]
    if lacking:
        unread += _unknown(unknown_sidecars(root, strange, owners, lacking), owners)
        unread += _lost(orphans, lacking) or _lists(root, orphans, lacking)
    rejected = [Rejected(n, "caption without image", _no_image(n)) for n in orphans]
    return found._replace(orphans=rejected, problems=[*found.problems, *unread])


def _may_carry(name: str) -> bool:
    return name.lower().endswith(SIDECARS) or may_be_table(name)


def _no_image(sidecar: str) -> str:
    return f"there is no image {posixpath.basename(posixpath.splitext(sidecar)[0])} beside it"


# --- tables ---------------------------------------------------------------------------------------------------------


class _Pictures:
    """The pictures by whatever a table may call them."""

    def __init__(self, pictures: Iterable[str]) -> None:
        self._by_name = {_composed(p): p for p in pictures}  # a Mac writes names decomposed
        self._by_base: dict[str, str | None] = {}

    def find(self, home: str, written: str) -> str | None:
        """home: the table's own folder, as `a/b/`."""
        return self._by_name.get(_composed(home + written)) or self._by_name.get(_composed(_path(home, written)))

    def find_anywhere(self, written: str) -> str | None:
        """The one picture of that name, of a path on another machine or a name alone; with or without its suffix."""
        tidy = written.replace("\\", "/")
        if "/" in tidy and not (tidy.startswith("/") or tidy[1:3] == ":/"):
            return None
        if not self._by_base:
            for name in self._by_name:
                base = posixpath.basename(name)
                for key in {base, posixpath.splitext(base)[0]}:
                    self._by_base[key] = None if key in self._by_base else self._by_name[name]
        return self._by_base.get(_composed(posixpath.basename(tidy)))


class _Listed:
    """What tables list."""

    def __init__(self, pictures: _Pictures) -> None:
        self._pictures = pictures
        self.texts: dict[str, str] = {}
        self.origins: dict[str, CaptionOrigin] = {}
        self.attributes: dict[str, Attributes] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.unclear: list[str] = []
        self.tables: dict[str, bool] = {}
        """table -> it has captions"""
        self._said_by: dict[str, str] = {}

    def read(self, root: Path, table: str) -> bool:
        """Whether it is a table of pictures; one that says by its name that it is must be one."""
        faults: list[str] = []
        home = table.removesuffix(posixpath.basename(table))
        rows = read_rows(root, table, faults)
        columns = find_columns([row.cells for row in rows], lambda v: self._find(home, v) is not None)
        reserved = is_reserved(table) and not (table.lower().endswith(JSON) and not rows and not faults)
        if isinstance(columns, Unclear) or not (reserved or self._is_of_use(home, rows, columns)):
            if reserved:
                self.tables[table] = False
                problem = columns.problem if isinstance(columns, Unclear) else ""
                self.problems += faults or [f"{table}: {problem if rows else _EMPTY}"]
            elif isinstance(columns, Unclear) and columns.captions:
                self.unclear.append(f"{table} looks like captions, but {columns.problem}")
            elif rows and isinstance(columns, TableColumns) and columns.captions:
                self.unclear.append(f"{table} looks like captions, but names no picture that exists: "
                                    f"{first_three([repr(r.cells.get(columns.file)) for r in rows])}")  # fmt: skip
            elif faults and not rows and may_be_table(table) and not table.lower().endswith(JSON):
                self.unclear += faults[:1]
            return False
        self.problems += faults
        self.tables[table] = bool(columns.captions)
        if columns.unread:
            self.notes.append(
                f"{table}: captions come from the column {columns.captions[0]}; not used: {', '.join(columns.unread)}"
            )
        self._take(table, home, rows, columns)
        return True

    def _find(self, home: str, written: str) -> str | None:
        return self._pictures.find(home, written) or self._pictures.find_anywhere(written)

    def _is_of_use(self, home: str, rows: Sequence[TableRow], columns: TableColumns) -> bool:
        """It says something of a picture that is there."""
        if not columns.useful:
            return False
        named = (row.cells.get(columns.file) for row in rows)
        return any(isinstance(name, str) and self._find(home, name) for name in named)

    def _take(self, table: str, home: str, rows: Sequence[TableRow], columns: TableColumns) -> None:
        nowhere, by_base = [], []
        for row in _sound(table, rows, columns, self.problems):
            picture = self._pictures.find(home, row.file_name)
            if picture is None and (picture := self._pictures.find_anywhere(row.file_name)):
                by_base.append(f"{row.file_name} -> {picture}")
            if picture is None:
                nowhere.append(f"{row.file_name!r} ({row.where})")
                continue
            earlier = self._said_by.setdefault(picture, table)
            if columns.captions and self.texts.setdefault(picture, row.caption) != row.caption:
                self._differ(earlier, table, row)
                continue
            if row.origin is not None:
                self.origins[picture] = row.origin
            if row.attributes != NO_ATTRIBUTES or picture not in self.attributes:
                mask = _path(home, row.attributes.mask) if row.attributes.mask else ""
                self.attributes[picture] = row.attributes._replace(mask=mask)
        if nowhere:
            self.problems.append(f"{table} names {len(nowhere)} files that do not exist: {first_three(nowhere)}")
        if by_base:
            self.notes.append(
                f"{table}: {len(by_base)} pictures were found by their file names in other folders: {by_base[0]}"
            )

    def _differ(self, earlier: str, table: str, row: "_Row") -> None:
        if earlier == table:
            self.problems.append(f"{table} {row.where}: {row.file_name} has a second, different caption")
        elif (problem := f"two sources of captions: {earlier} and {table}; keep one") not in self.problems:
            self.problems.append(problem)


_EMPTY = f"it has no rows; {WANTED_FILES}, and {WANTED_CAPTIONS}"


class _Row(NamedTuple):
    where: str
    file_name: str
    caption: str
    origin: CaptionOrigin | None
    attributes: Attributes


def _sound(table: str, rows: Sequence[TableRow], columns: TableColumns, problems: list[str]) -> Iterator[_Row]:
    """The sound rows of a table; a wrong row is added to the problems."""
    for where, cells in rows:
        file_name, captions = cells.get(columns.file), [c for k in columns.captions if (c := cells.get(k))]
        further: tuple[str, ...] = ()
        if len(captions) == 1 and isinstance(several := captions[0], list) and all(isinstance(c, str) for c in several):
            captions, further = several[:1], tuple(several[1:])
        if not isinstance(file_name, str) or not file_name:
            problems.append(f"{table} {where}: the row has no {columns.file}")
        elif not all(isinstance(c, str) for c in captions) or captions != captions[:1] * len(captions):
            problems.append(
                f"{table} {where}: the row must have one caption, a string in `{'` or `'.join(columns.captions)}`"
            )
        else:
            by = cells.get("caption_by")
            origin = cast(CaptionOrigin, by) if by in _ORIGINS else None
            try:
                attributes = read_attributes({k: v for k, v in cells.items() if k not in columns.captions})
            except ValueError as e:
                problems.append(f"{table} {where}: {e}")
                continue
            if further:
                attributes = attributes._replace(captions=(*further, *attributes.captions))
            yield _Row(where, file_name.strip(), str(captions[0]) if captions else "", origin, attributes)


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _path(home: str, file_name: str) -> str:
    """Relative to the dataset's folder."""
    return posixpath.normpath(posixpath.join(home, file_name.replace("\\", "/")))


# --- both -----------------------------------------------------------------------------------------------------------


def _together(beside: Sidecars, listed: _Listed) -> FoundCaptions:
    """One caption for each picture: where a sidecar and a table speak of it, they must say the same."""
    captioning = [table for table, has in listed.tables.items() if has]
    problems = [*beside.problems, *listed.problems]
    for picture, text in beside.texts.items():
        if listed.texts.get(picture, text).split() != text.split():
            some = first_three(sorted(beside.files))
            problems.append(f"two sources of captions: {captioning[0]} and {some}; keep one (they differ on {picture})")
            break
    attributes = dict(listed.attributes)
    for picture, further in beside.further.items():
        attributes[picture] = attributes.get(picture, NO_ATTRIBUTES)._replace(captions=further)
    sources = [*captioning[:1], *(["sidecars"] if beside.files else [])]
    return FoundCaptions(
        " and ".join(sources) or "none", {**beside.texts, **listed.texts}, beside.files | set(listed.tables), [],
        problems, listed.origins, attributes, tuple(listed.notes),
    )  # fmt: skip


# --- what was not understood ----------------------------------------------------------------------------------------


def _unclear(beside: Sidecars, owners: Owners, lacking: set[str]) -> list[str]:
    """JSON beside pictures that have no caption otherwise; of many alike only the first."""
    said = [problem for name, problem in beside.unclear.items() if not lacking.isdisjoint(owners.of(name))]
    return said[:1] if len(said) == 1 else [f"{said[0]} (and {len(said) - 1} more such files)"] if said else []


def _unknown(names: Sequence[str], owners: Owners) -> list[str]:
    if not names:
        return []
    _, suffix = posixpath.splitext(names[0])
    return [
        f"{len(names)} text files beside pictures without captions are not read, as {suffix} is not a suffix of "
        f"captions: {first_three(names)}; expected is {posixpath.splitext(owners.of(names[0])[0])[0]}.txt, .caption or "
        ".json"
    ]


_ABOUT_ALL = frozenset(
    "readme license licence notes note credits copyright copying todo changelog url urls links prompt prompts multiply "
    "classes requirements index info about contact description sample_prompts validation_prompts".split()
)
"""What texts are called that are about a folder, not about a picture"""


def _lost(texts: Sequence[str], lacking: set[str]) -> list[str]:
    """Captions whose picture is not beside them, while pictures have none: as many as would be missed."""
    stems = {name: posixpath.splitext(posixpath.basename(name))[0].lower() for name in texts}
    orphans = [name for name in texts if stems[name] not in _ABOUT_ALL]
    if len(orphans) < _MANY_ORPHANS or 2 * len(orphans) < len(lacking):
        return []
    example = sorted(lacking)[0]
    return [
        f"{len(orphans)} caption files have no picture beside them, and {len(lacking)} pictures have no caption: found "
        f"{first_three(orphans)}; expected {posixpath.splitext(example)[0]}.txt for {example}; move or rename them"
    ]


def _lists(root: Path, orphans: Sequence[str], lacking: set[str]) -> list[str]:
    """Text files that name the pictures line by line, and are no tables."""
    some = [posixpath.basename(name) for name in sorted(lacking)[:_LOOKED_FOR]]
    found = [name for name in orphans if 2 * sum(one in prose(root / name) for one in some) >= len(some)]
    return [
        f"{name} names pictures that have no caption, but cannot be read as a table: {WANTED_FILES}, and "
        f"{WANTED_CAPTIONS}, both named in the first line; or write each caption into a file of its own"
        for name in found
    ]


def _is_table_in_disguise(root: Path, name: str, listed: _Listed) -> bool:
    """Whether a text file without a picture is a table, as the captions.txt of public datasets."""
    if not name.lower().endswith(SIDECARS) or "\n" not in prose(root / name):
        return False
    return listed.read(root, name)


def first_three(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
