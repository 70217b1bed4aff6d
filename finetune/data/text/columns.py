"""Which columns of a table name pictures, and which hold their captions: by their names and by what is in them.

One rule for tables beside pictures, tables that hold pictures, and JSON beside a picture, `best_captions`: of names
that are known those of the highest rank are the captions. Where these are several, they must say the same, or it is
a problem that lists them. Only in a table that holds pictures a column of an unknown name is taken, where it is the one
with words in it: beside pictures such a table may be about anything.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from finetune.data.attributes import ATTRIBUTE_COLUMNS
from finetune.data.images.signatures import IMAGE_SUFFIXES

FILE_COLUMNS = (
    "file_name", "filename", "file", "file_path", "filepath", "path", "image", "image_path", "image_file",
    "image_file_name", "image_filename", "image_name", "img", "img_path", "img_name", "picture", "photo", "media_path",
    "target_image", "target", "key", "name", "id", "image_id",
)  # fmt: skip
_VAGUE_FILES = ("key", "name", "id", "image_id", "target")
"""Names of columns that are pictures only where their values are"""
PICTURE_COLUMNS = frozenset((
    *(name for name in FILE_COLUMNS if name not in _VAGUE_FILES), "pixel_values",
    *(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES),
))  # fmt: skip
"""Names of columns that hold a picture itself, as webdataset's jpg"""
CAPTION_COLUMNS = ("text", "caption")
"""The hub's own names: beside them other columns are no captions"""
OTHER_CAPTION_COLUMNS = (
    "prompt", "description", "caption_text", "text_prompt", "image_caption", "image_description", "img_caption",
    "blip_caption", "long_caption", "detailed_caption", "alt_text", "alt", "sentence", "comment", "instruction",
    "en_text", "txt", "label_txt",
)  # fmt: skip
_RANKS = (CAPTION_COLUMNS, OTHER_CAPTION_COLUMNS, ("captions",), ("tags", "tag_string", "title"))
"""From the first of these that a table has; a list `captions` beside another column is of further captions."""
EVERY_CAPTION_COLUMN = tuple(name for rank in _RANKS for name in rank)
OTHERS = frozenset((
    *ATTRIBUTE_COLUMNS, "caption_by", "width", "height", "label", "url", "sha256", "md5", "hash", "caption_short",
    "train_resolution",
))  # fmt: skip
"""What is known to be no caption"""
_SENTENCE = re.compile(r"[^\W\d_]{2,}[^\n]*\s[^\n]*[^\W\d_]{2,}")
_LOOKED_AT = 1000
"""rows"""
Cells = Mapping[str, object]


class TableColumns(NamedTuple):
    """The columns of a table; empty where there is none."""

    file: str
    captions: tuple[str, ...]
    """One; or `text` and `caption` both, which must then say the same."""
    unread: tuple[str, ...] = ()
    """Other columns that may be captions."""
    useful: bool = True
    """It has captions, or something else that is known of pictures."""


USEFUL_COLUMNS = frozenset(ATTRIBUTE_COLUMNS) - {"captions"}
"""TableColumns that make a table of pictures useful without captions"""


class Unclear(NamedTuple):
    """Why it cannot be told which columns they are."""

    problem: str
    captions: bool
    """some column looks like captions"""


def best_captions(names: Iterable[str]) -> tuple[str, ...]:
    """Of columns with texts those that are the captions, by their names alone; () where no name is known."""
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(plain_column(name), []).append(name)
    for rank in _RANKS:
        if found := [name for wanted in rank for name in by_name.get(wanted, ())]:
            return tuple(found)
    return ()


def find_columns(rows: Sequence[Cells], is_picture: Callable[[str], bool]) -> TableColumns | Unclear:
    """The columns with the files and the captions of a table."""
    names = list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))
    some = rows[:: max(1, len(rows) // _LOOKED_AT)]
    file = _file_column(names, some, is_picture)
    known = [n for n in names if n != file and plain_column(n) in EVERY_CAPTION_COLUMN]
    captions = best_captions(n for n in known if plain_column(n) in CAPTION_COLUMNS or _has_texts(n, some))
    if not file:
        return Unclear(f"no column names the pictures: {_there(names)}; {WANTED_FILES}", bool(captions))
    if "." in file and is_picture(file):
        return Unclear(f"the first line must name the columns, as file_name and text; {_there(names)}", True)
    if not captions:
        like = [n for n in names if n != file and plain_column(n) not in OTHERS and _has_texts(n, some, _SENTENCE)]
        if like:
            return Unclear(f"no column is known to hold captions: {_there(names)}; {WANTED_CAPTIONS}", True)
        return TableColumns(file, (), useful=any(plain_column(n) in USEFUL_COLUMNS for n in names))
    if len(captions) > 1 and plain_column(captions[0]) not in CAPTION_COLUMNS:
        return Unclear(
            f"several columns may be the captions: {', '.join(captions)}; name the right one `text` or `caption`, or "
            "leave the others out",
            True,
        )
    unread = (n for n in known if n not in captions and plain_column(n) not in OTHERS and _has_texts(n, some))
    return TableColumns(file, captions, tuple(unread))


WANTED_FILES = f"file names belong in a column such as {', '.join(FILE_COLUMNS[:5])}"
WANTED_CAPTIONS = f"captions belong in a column such as {', '.join((*CAPTION_COLUMNS, *OTHER_CAPTION_COLUMNS[:2]))}"


def _file_column(names: Sequence[str], rows: Sequence[Cells], is_picture: Callable[[str], bool]) -> str:
    """By its name; of several, or where none is known, the one whose values are pictures of the folder."""
    known = [n for n in names if plain_column(n) in FILE_COLUMNS]
    known.sort(key=lambda n: FILE_COLUMNS.index(plain_column(n)))
    if known and plain_column(known[0]) == FILE_COLUMNS[0]:
        return known[0]
    counts = {
        n: sum(isinstance(v := row.get(n), str) and (n in known or "." in v) and is_picture(v) for row in rows)
        for n in known or names
    }
    best = max(counts, key=lambda n: counts[n], default="")
    if best and counts[best]:
        return best
    sure = [n for n in known if plain_column(n) not in _VAGUE_FILES]
    return sure[0] if sure else ""


def _has_texts(name: str, rows: Iterable[Cells], pattern: re.Pattern[str] | None = None) -> bool:
    """Whether a column has texts, in most rows where it is not empty."""
    values = [value for row in rows if (value := row.get(name)) not in (None, "")]
    fit = sum(
        isinstance(value, str | list) and (pattern is None or bool(pattern.search(str(value)))) for value in values
    )
    return 2 * fit > len(values) > 0


def plain_column(name: str) -> str:
    """Of `File Name` and `file-name` file_name."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _there(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"its columns are {shown}{' ...' if len(names) > 8 else ''}" if names else "it has no columns"
