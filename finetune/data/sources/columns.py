"""Which columns of a table hold the pictures and the captions: found where only one fits, else listed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune.data.attributes import ATTRIBUTE_COLUMNS
from finetune.data.images.diagnose import SUFFIXES
from finetune.errors import DataError

CAPTION_NAMES = (
    "text", "caption", "prompt", "captions", "description", "label_txt", "txt", "blip_caption", "en_text",
)  # fmt: skip
"""columns that hold captions whatever else is there, in lower case"""
IMAGE_NAMES = ("image", "img", "picture", "photo", "pixel_values", "jpg", "png", "webp", "file_name", "image_path")
KNOWN = (*ATTRIBUTE_COLUMNS, "caption_by")
"""columns that are kept under these names"""
_SUFFIXES = tuple(suffix for some in SUFFIXES.values() for suffix in some)
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\xff\x0a", b"\0\0\0\x0cJXL")

TableCells = Mapping[str, object]


class Columns(NamedTuple):
    image: str
    caption: str
    """Empty: the table has no captions."""
    kept: tuple[str, ...]
    """Others, whose names `read_attributes` knows."""


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
    said = "" if caption == "none" else caption or _caption_column(where, rows, [n for n in names if n != image])
    kept = [n for n in KNOWN if n in names and n not in (image, said, *ignored)]
    return Columns(image, said, tuple(kept))


def _image_column(where: str, rows: Sequence[TableCells], pictures: Sequence[str], names: Sequence[str]) -> str:
    fit = list(pictures) or [n for n in names if any(_is_picture(column_cell(row, n)) for row in rows)]
    if len(fit) > 1 and (usual := [n for n in fit if n.lower() in IMAGE_NAMES]):
        fit = usual
    if len(fit) == 1:
        return fit[0]
    if not fit:
        raise DataError(f"{where}: no column holds images", f"name it with `image_column`; {_listed(names)}")
    raise DataError(f"{where}: several columns hold images: {', '.join(fit)}", "name one with `image_column`")


def _caption_column(where: str, rows: Sequence[TableCells], names: Sequence[str]) -> str:
    usual = [n for n in names if n.rpartition(".")[2].lower() in CAPTION_NAMES and _is_text(rows, n)]
    top = [n for n in usual if "." not in n]
    fit = top or usual or [n for n in names if n not in KNOWN and _is_text(rows, n) and _has_words(rows, n)]
    if "captions" in fit and len(fit) > 1:  # further captions beside the first
        fit.remove("captions")
    if len(fit) > 1:
        hint = "name one with `caption_column`, or write none for a dataset without captions"
        raise DataError(f"{where}: several columns may hold the captions: {', '.join(fit)}", hint)
    return fit[0] if fit else ""


def _is_picture(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"bytes", "path"}
    if isinstance(value, bytes):
        return value.startswith(_MAGIC) or value[4:8] == b"ftyp"
    return isinstance(value, str) and value.lower().split("?")[0].endswith(_SUFFIXES)


def _is_text(rows: Sequence[TableCells], name: str) -> bool:
    values = [value for row in rows if (value := column_cell(row, name)) not in (None, "")]
    return bool(values) and all(
        isinstance(v, str) or (isinstance(v, list) and v and all(isinstance(one, str) for one in v)) for v in values
    ) and not any(_is_picture(v) for v in values)  # fmt: skip


def _has_words(rows: Sequence[TableCells], name: str) -> bool:
    return any(" " in str(column_cell(row, name)).strip() for row in rows)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    return f"the columns are: {shown}" if names else "it has no columns"
