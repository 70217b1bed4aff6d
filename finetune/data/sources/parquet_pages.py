"""How much memory a parquet file takes to be read, by the headers of its pages: they are what its reader goes by.

A page is unpacked as a whole. Its header says how large it will be, in the file's own metadata only sums are told.
It says how many values it has, too: in columns of lists one row may have all of them, and equal ones take no room in
the file.
Format: parquet.thrift (Apache Parquet), in the compact protocol of Thrift.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from finetune.errors import DataError

FREE_PAGE_BYTES, PAGE_PER_BYTE = 128 << 20, 20
"""A page may unpack to so much, and above that to so many times its size in the file: pictures hardly shrink."""
VALUE_BYTES = 8
"""of a value in a list when it is read, at least"""
_HEADER_BYTES = (1 << 12, 1 << 24)
"""of a page's header: tried first, and at most, which is what Arrow reads"""
_DEPTH = 8
_INTS = (3, 4, 5, 6)
_BOOLEANS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 7, 8, (9, 10), 12
_UNPACKED, _PACKED, _HEADS = 2, 3, (5, 8)
"""the fields of a page's header that are read; the last are of a data page, and begin with the number of its values"""


class Page(NamedTuple):
    """What a page's header says."""

    column: str
    compressed: int
    uncompressed: int
    values: int
    """of a data page"""


def largest_page(path: Path, columns: Sequence[str] | None) -> int:
    """Bytes of the largest page of the columns (all for None) when it is unpacked.

    Raises:
        DataError: a page unpacks to far more than its size, or its header is damaged. Raises what pyarrow raises.
    """
    most = 0
    for page in pages(path, columns):
        if page.uncompressed > max(FREE_PAGE_BYTES, PAGE_PER_BYTE * page.compressed):
            raise DataError(
                f"{path}: a page of the column {page.column} has {page.compressed:,} bytes, and unpacks to "
                f"{page.uncompressed >> 20:,} MiB",
                "if it is no bomb, write the table again with fewer rows in a row group, or the pictures as files",
            )
        most = max(most, page.uncompressed)
    return most


def pages(path: Path, columns: Sequence[str] | None) -> Iterator[Page]:
    """Those of the columns, in the order of the file. Raises DataError: lists have far more values than bytes."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        told, schema = file.metadata, file.schema
    with path.open("rb") as content:
        for group in range(told.num_row_groups):
            row_group = told.row_group(group)
            for number in range(row_group.num_columns):
                chunk = row_group.column(number)
                if columns is not None and chunk.path_in_schema.partition(".")[0] not in columns:
                    continue
                values = 0
                for page in _pages_of(chunk, content, path):
                    values += page.values
                    yield page
                if (column := schema.column(number)).max_repetition_level:
                    _refuse_lists(values * max(VALUE_BYTES, column.length), chunk, path)


def _refuse_lists(held: int, chunk: Any, path: Path) -> None:
    if held > max(FREE_PAGE_BYTES, PAGE_PER_BYTE * (size := chunk.total_compressed_size)):
        raise DataError(
            f"{path}: the lists of the column {chunk.path_in_schema} have {size:,} bytes in a row group, and unpack "
            f"to {held >> 20:,} MiB",
            "if it is no bomb, write the table again with fewer rows in a row group, or without this column",
        )


def _pages_of(chunk: Any, content: IO[bytes], path: Path) -> Iterator[Page]:
    starts = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
    at = min(start for start in starts if start)
    end = at + chunk.total_compressed_size
    while at < end:
        length, told = _header(content, at, f"{path}: a page of the column {chunk.path_in_schema}")
        packed = told[_PACKED]
        yield Page(chunk.path_in_schema, packed, told[_UNPACKED], max(told.get(head, 0) for head in _HEADS))
        at += length + packed


def _header(content: IO[bytes], at: int, what: str) -> tuple[int, dict[int, int]]:
    """(its own bytes, what it says)"""
    for most in _HEADER_BYTES:
        content.seek(at)
        reader = _Compact(content.read(most))
        try:
            found = reader.struct()
        except (IndexError, ValueError):
            continue
        if min(found.get(_PACKED, -1), found.get(_UNPACKED, -1), *(found.get(head, 0) for head in _HEADS)) >= 0:
            return reader.at, found
    raise DataError(f"{what} has a header that is damaged", "is the file whole? copy or download it again")


class _Compact:
    """Thrift's compact protocol, as far as a page's header needs it. Raises IndexError, ValueError: it is damaged."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """The whole numbers among its fields, by their ids, and the first of a struct; all else is passed over."""
        found, field = dict[int, int](), 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else _signed(self._number())
            if (kind := head & 15) in _INTS and kind != _INTS[0]:
                found[field] = _signed(self._number())
            elif kind == _STRUCT and not depth:
                found[field] = self.struct(1).get(1, 0)
            elif kind not in _BOOLEANS:  # in a field they are the kind itself
                self._pass(kind, depth)
        return found

    def _pass(self, kind: int, depth: int) -> None:
        if depth > _DEPTH:
            raise ValueError("too deep")
        if kind in (*_BOOLEANS, _INTS[0]):
            self._byte()
        elif kind in _INTS:
            self._number()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._number()  # moves on, too
            self.at += length
        elif kind == _STRUCT:
            self.struct(depth + 1)
        elif kind in _LISTS:
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._number()):
                self._pass(head & 15, depth + 1)
        else:
            raise ValueError(f"a field of kind {kind}")

    def _byte(self) -> int:
        found = self._data[self.at]
        self.at += 1
        return found

    def _number(self) -> int:
        found = shift = 0
        while shift < 70:
            byte = self._byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
        raise ValueError("a number of more than ten bytes")


def _signed(number: int) -> int:
    """Zigzag: 0, -1, 1, -2 ..."""
    return (number >> 1) ^ -(number & 1)
