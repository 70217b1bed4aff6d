"""Tables of captions as people have them: JSON lines, CSV of any sort, parquet, JSON keyed by file name."""

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune import reading
from finetune.data.images.signatures import IMAGE_SUFFIXES
from finetune.data.sources.parquet import ParquetRows, parquet_schema
from finetune.data.text.columns import CAPTION_COLUMNS, EVERY_CAPTION_COLUMN, FILE_COLUMNS, plain_column
from finetune.data.text.texts import read_or_say
from finetune.errors import DataError

TABLE = "metadata.jsonl"
RESERVED = (TABLE, "metadata.csv", "metadata.parquet", "metadata.json", "metadata.tsv")
"""Names that say what the file is for: such a table must be understood."""
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")
MOST_ROWS = 5_000_000
_PER_BYTE, _ROWS_AT_ONCE = 4, 1000
"""What a parquet table may unpack to, for each byte that a text may have, and rows of it that are held twice"""
DELIMITERS = (",", ";", "\t", "|")
_CAPTIONED = frozenset((*CAPTION_COLUMNS, "tags", "prompt"))
_NAMED = "file_name"
"""the column of a table that is keyed by file name"""


class TableRow(NamedTuple):
    where: str
    cells: Mapping[str, object]


def is_reserved(name: str) -> bool:
    return posixpath.basename(name).lower() in RESERVED


def may_be_table(name: str) -> bool:
    return name.lower().endswith(TABLE_SUFFIXES)


def read_rows(root: Path, table: str, problems: list[str]) -> list[TableRow]:
    """The rows of a table; what cannot be read is added to the problems."""
    suffix = posixpath.splitext(table)[1].lower()
    if suffix == ".parquet":
        return _parquet_rows(root, table, problems)
    text = read_or_say(root, table, problems)
    if suffix in (".jsonl", ".ndjson"):
        return list(_json_lines(table, text, problems))
    if suffix == ".json":
        return _json_rows(table, text, problems)
    return list(_csv_rows(table, text, problems))


def _json_lines(table: str, text: str, problems: list[str]) -> Iterator[TableRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = reading.json_table(line, f"{table} line {number}", DataError, "", finite=False)
        except DataError as e:
            problems.append(e.problem)
            continue
        yield TableRow(f"line {number}", cells)


def _json_rows(table: str, text: str, problems: list[str]) -> list[TableRow]:
    """A list of rows, or one table keyed by file name, as the metadata of kohya, ai-toolkit and diffusion-pipe."""
    if not text:
        return []
    try:
        found = reading.json_value(text, table, DataError, "", finite=False)
    except DataError as e:
        if "\n{" in text.strip():  # JSON lines under another name
            return list(_json_lines(table, text, problems))
        problems.append(e.problem)
        return []
    if isinstance(found, list) and all(isinstance(one, dict) for one in found):
        return [TableRow(f"entry {n}", one) for n, one in enumerate(found, 1)]
    if isinstance(found, dict) and _is_keyed(found):
        return [TableRow(f"entry {key!r}", _keyed(key, one)) for key, one in found.items()]
    return []


def _is_keyed(found: Mapping[str, Any]) -> bool:
    """Whether its keys are files: by their suffixes, or by captions that they have."""
    values = list(found.values())
    if not values or not all(isinstance(one, dict | str | list) for one in values):
        return False
    captioned = isinstance(values[0], dict) and not _CAPTIONED.isdisjoint(values[0])
    return captioned or any(posixpath.splitext(key)[1].lower() in IMAGE_SUFFIXES for key in found)


def _keyed(key: str, value: Any) -> Mapping[str, object]:
    """A row of a table that is keyed by file name. kohya adds the tags to the caption."""
    if not isinstance(value, dict):
        return {_NAMED: key, CAPTION_COLUMNS[0]: value}
    caption, tags = value.get("caption"), value.get("tags")
    if isinstance(tags, str) and isinstance(caption, str | None):
        lines = caption.split("\n") if caption else [""]
        rest = {name: one for name, one in value.items() if name != "tags"}
        return {_NAMED: key, **rest, "caption": "\n".join(", ".join(filter(None, (line, tags))) for line in lines)}
    return {_NAMED: key, **value}


def _csv_rows(table: str, text: str, problems: list[str]) -> Iterator[TableRow]:
    lines = text.lstrip("\n")
    skipped = text.count("\n") - lines.count("\n")
    reader = csv.DictReader(io.StringIO(lines, newline=""), delimiter=_delimiter(lines), skipinitialspace=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            where = f"line {reader.line_num + skipped}"
            if None in row:
                problems.append(f"{table} {where}: more values than columns; put quotes around a caption with commas")
                continue
            yield TableRow(where, row)
    except csv.Error as e:
        problems.append(f"{table} line {reader.line_num + skipped}: the line is not CSV ({e})")


def _delimiter(text: str) -> str:
    """By the first line: what divides it into names of columns that are known, else into the most."""
    first = text.partition("\n")[0]
    known = {*FILE_COLUMNS, *EVERY_CAPTION_COLUMN}

    def fit(delimiter: str) -> tuple[int, int]:
        names = [plain_column(name.strip().strip('"')) for name in first.split(delimiter)]
        return sum(name in known for name in names), len(names)

    return max(DELIMITERS, key=fit)


def _parquet_rows(root: Path, table: str, problems: list[str]) -> list[TableRow]:
    import pyarrow

    rows, left = list[TableRow](), reading.TEXT_BYTES * _PER_BYTE
    try:
        reading.read_bytes(root / table, DataError)  # a file, and no larger than a text may be
        names = [field.name for field in parquet_schema(root / table) if not _holds_pictures(field.type)]
        for cells in ParquetRows([root / table], (), names, _ROWS_AT_ONCE):
            left -= sum(_text_bytes(value) for value in cells.values())
            if left < 0 or len(rows) == MOST_ROWS:
                limit = f"{MOST_ROWS:,} rows and {reading.TEXT_BYTES * _PER_BYTE >> 20} MiB of text"
                problems.append(f"{table} unpacks to more than {limit}, which is the most that is read")
                return []
            rows.append(TableRow(f"row {len(rows) + 1}", cells))
    except DataError as e:
        problems.append(e.problem.replace(str(root / table), table))
        return []
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        said = str(e).partition("\n")[0][:120]
        problems.append(f"{table} is not a parquet file, or incomplete ({said}); copy it again")
        return []
    return rows


def _text_bytes(value: object) -> int:
    return sum(map(_text_bytes, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 8


def _holds_pictures(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))
