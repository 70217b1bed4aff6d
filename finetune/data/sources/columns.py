"""Which columns of a table hold the pictures and the captions: found where only one fits, else listed."""

import base64
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune.data.attributes import ATTRIBUTE_COLUMNS
from finetune.data.images.signatures import IMAGE_SUFFIXES, format_of
from finetune.data.text.columns import OTHERS, PICTURE_COLUMNS, best_captions, plain_column
from finetune.errors import DataError

KNOWN = (*ATTRIBUTE_COLUMNS, "caption_by")
"""columns that are kept under these names"""
_SHORTEST = 64
"""characters of a picture as base64"""

TableCells = Mapping[str, object]


class Columns(NamedTuple):
    image: str
    caption: str
    """Empty: the table has no captions."""
    kept: tuple[str, ...]
    """Others, whose names `read_attributes` knows."""
    unread: tuple[str, ...] = ()
    """Others that may be captions."""


def column_cell(row: TableCells, column: str) -> object:
    """Of a column, or with `json.caption` of a column's own column. None: there is none."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    found = row.get(outer)
    return found.get(inner) if inner and isinstance(found, Mapping) else None


def column_names(rows: Sequence[TableCells]) -> list[str]:
    """Of the first rows, with those inside of columns; the parts of a picture are none."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            names[name] = None
            if isinstance(value, Mapping) and not _is_picture(value):
                names.update(dict.fromkeys(f"{name}.{inner}" for inner in value))
    return list(names)


def choose_columns(
    where: str, rows: Sequence[TableCells], pictures: Sequence[str], image: str, caption: str,
    ignored: Sequence[str] = (),
) -> Columns:  # fmt: skip
    """The columns of a table. pictures: those that it declares as such. image, caption: as the user named them.

    Raises:
        DataError: a named one is not there, or several fit, or none does; the columns are listed.
    """
    names = column_names(rows)
    for option, named in (
        ("image_column", image),
        ("caption_column", caption),
        *(("ignore_column", i) for i in ignored),
    ):
        if named and named != "none" and named not in names:
            raise DataError(f"{where} has no column {named!r} (`{option}`)", _listed(names))
    image = image or _image_column(where, rows, pictures, names)
    _refuse_addresses(where, rows, image)
    rest = [n for n in names if n not in (image, *ignored)]
    said = "" if caption == "none" else caption or _caption_column(where, rows, rest)
    kept = [n for n in KNOWN if n in names and n not in (image, said, *ignored)]
    unread = [] if caption else [n for n in _known_captions(rows, rest) if n not in (said, *kept)]
    return Columns(image, said, tuple(kept), tuple(unread))


def _image_column(where: str, rows: Sequence[TableCells], pictures: Sequence[str], names: Sequence[str]) -> str:
    """Columns with the pictures themselves go before those with their names, and known names before others."""
    inside = [n for n in names if any(_is_picture(column_cell(row, n)) for row in rows)]
    fit = list(pictures) or inside or [n for n in names if any(_names_picture(column_cell(row, n)) for row in rows)]
    if len(fit) > 1 and (usual := [n for n in fit if plain_column(n) in PICTURE_COLUMNS]):
        fit = usual
    fit = fit or [n for n in names if any(is_address(column_cell(row, n)) for row in rows)][:1]
    if len(fit) == 1:
        return fit[0]
    if not fit:
        raise DataError(f"{where}: no column holds images", f"name it with `image_column`; {_listed(names)}")
    raise DataError(f"{where}: several columns hold images: {', '.join(fit)}", "name one with `image_column`")


def _caption_column(where: str, rows: Sequence[TableCells], names: Sequence[str]) -> str:
    """By the rule of `text.columns`; those of the table itself go before those inside of other columns."""
    known = _known_captions(rows, names)
    own = {n.rpartition(".")[2]: n for n in reversed([n for n in known if "." not in n] or known)}
    fit = [own[n] for n in best_captions(own)]
    if len({repr([column_cell(row, n) for row in rows]) for n in fit}) == 1:
        return fit[0]
    fit = fit or [n for n in names if plain_column(n) not in OTHERS and _is_text(rows, n) and _has_words(rows, n)]
    if len(fit) > 1:
        hint = "name one with `caption_column`, or write none for a dataset without captions"
        raise DataError(f"{where}: several columns may hold the captions: {', '.join(fit)}", hint)
    return fit[0] if fit else ""


def _known_captions(rows: Sequence[TableCells], names: Sequence[str]) -> list[str]:
    """Columns with texts whose names are known for captions, also those inside of others."""
    return [n for n in names if best_captions([n.rpartition(".")[2]]) and _is_text(rows, n)]


def _refuse_addresses(where: str, rows: Sequence[TableCells], image: str) -> None:
    """Raises DataError: there are no pictures, only where they could be downloaded, as in LAION's tables."""
    values = [value for row in rows if (value := column_cell(row, image)) not in (None, "")]
    if values and all(map(is_address, values)):
        raise DataError(
            f"{where}: the column {image} holds addresses ({str(values[0])[:60]}), and nothing is downloaded",
            "download the pictures, as img2dataset does, and give the folder or the archives that it makes",
        )


def is_address(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://", "s3://", "gs://"))


def picture_in_text(text: str) -> bytes | None:
    """A picture that a text holds as base64, with or without `data:image/png;base64,`; None: it holds none."""
    body = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        if not format_of(base64.b64decode(body[:64], validate=True)):
            return None
        return base64.b64decode(body, validate=True)
    except ValueError:
        return None


def _is_picture(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"bytes", "path"}
    if isinstance(value, str):
        return len(value) > _SHORTEST and picture_in_text(value) is not None
    return isinstance(value, bytes) and bool(format_of(value))


def _names_picture(value: object) -> bool:
    return isinstance(value, str) and value.lower().split("?")[0].endswith(IMAGE_SUFFIXES)


def _is_text(rows: Sequence[TableCells], name: str) -> bool:
    values = [value for row in rows if (value := column_cell(row, name)) not in (None, "")]
    return bool(values) and all(
        isinstance(v, str) or (isinstance(v, list) and v and all(isinstance(one, str) for one in v)) for v in values
    ) and not any(_names_picture(v) for v in values)  # fmt: skip


def _has_words(rows: Sequence[TableCells], name: str) -> bool:
    return any(" " in str(column_cell(row, name)).strip() for row in rows)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    return f"the columns are: {shown}" if names else "it has no columns"
