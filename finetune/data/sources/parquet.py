"""Local parquet files, read in small batches: `datasets` holds a whole row group, which may be all of a file.

What is held is one page of each column, unpacked, and the rows of a batch. Before a file is read the headers of its
pages are: one that unpacks to far more than its size is refused, and the larger the largest is, the fewer rows are read
at once, as each of them may be as large.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.sources.parquet_pages import largest_page

ROWS_AT_ONCE = 16
"""rows at once, at most: each may be a large picture"""
BATCH_BYTES = 512 << 20
"""of rows at once, where there are several"""
_BUFFER_BYTES = 1 << 16


class ParquetRows:
    """The rows of some files, one after the other; answers as a stream of `datasets`, as far as it is asked here."""

    def __init__(
        self, paths: Sequence[Path], pictures: Sequence[str], columns: Sequence[str] | None = None,
        at_once: int = ROWS_AT_ONCE,
    ) -> None:  # fmt: skip
        self.pictures = pictures
        self._paths, self._columns, self._next, self._at_once = tuple(paths), columns, 0, at_once

    def select_columns(self, columns: Sequence[str]) -> "ParquetRows":
        return ParquetRows(self._paths, self.pictures, columns, self._at_once)

    def state_dict(self) -> dict[str, int]:
        """After the row that was given last."""
        return {"row": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._next = state["row"]

    def __iter__(self) -> Iterator[dict[str, object]]:
        """Raises DataError: a page is a bomb. Raises what pyarrow raises of a file that is not whole."""
        import pyarrow.parquet

        first = 0
        for path in self._paths:
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
                if first + file.metadata.num_rows > self._next:
                    held = max(1, largest_page(path, self._columns))
                    for row in self._rows(file, first, max(1, min(self._at_once, BATCH_BYTES // held))):
                        self._next += 1
                        yield row
                first += file.metadata.num_rows

    def _rows(self, file: Any, first: int, at_once: int) -> Iterator[dict[str, object]]:
        """first: the number of the file's first row."""
        first, groups = self._groups(file, first)
        for batch in file.iter_batches(at_once, groups, self._columns, use_threads=False):
            yield from batch.slice(max(0, self._next - first)).to_pylist()
            first += batch.num_rows

    def _groups(self, file: Any, first: int) -> tuple[int, list[int]]:
        """(the first row of the first group that is to be read, the groups from there on)."""
        told = file.metadata
        group = 0
        while group < told.num_row_groups and first + told.row_group(group).num_rows <= self._next:
            first += told.row_group(group).num_rows
            group += 1
        return first, list(range(group, told.num_row_groups))


def parquet_schema(path: Path) -> Any:
    """Pyarrow's. Raises what it raises of a file that is not whole."""
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(path)
