"""A local parquet file, read in small batches: `datasets` holds a whole row group, which may be all of the file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS_AT_ONCE = 16
"""rows at once: each may be a large picture"""
_BUFFER_BYTES = 1 << 16


class ParquetRows:
    """Answers as a stream of `datasets` does, as far as it is asked here."""

    def __init__(self, path: Path, pictures: Sequence[str], columns: Sequence[str] | None = None) -> None:
        self.pictures = pictures
        self._path, self._columns, self._next = path, columns, 0

    def select_columns(self, columns: Sequence[str]) -> "ParquetRows":
        return ParquetRows(self._path, self.pictures, columns)

    def state_dict(self) -> dict[str, int]:
        """After the row that was given last."""
        return {"row": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._next = state["row"]

    def __iter__(self) -> Iterator[dict[str, object]]:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            first, groups = self._groups(file)
            for batch in file.iter_batches(ROWS_AT_ONCE, groups, self._columns, use_threads=False):
                for row in batch.slice(max(0, self._next - first)).to_pylist():
                    self._next += 1
                    yield row
                first += batch.num_rows

    def _groups(self, file: Any) -> tuple[int, list[int]]:
        """(the first row of the first group that is to be read, the groups from there on)."""
        told = file.metadata
        first = group = 0
        while group < told.num_row_groups and first + told.row_group(group).num_rows <= self._next:
            first += told.row_group(group).num_rows
            group += 1
        return first, list(range(group, told.num_row_groups))


def parquet_schema(path: Path) -> Any:
    """Pyarrow's. Raises what it raises of a file that is not whole."""
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(path)
