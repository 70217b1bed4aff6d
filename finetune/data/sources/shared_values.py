"""Values that an arrow file has once for many of its cells: what they take when each cell has its own."""

from pathlib import Path
from typing import Any

from finetune.data.sources.parquet_pages import FREE_PAGE_BYTES, PAGE_PER_BYTE
from finetune.errors import DataError


def refuse_shared(path: Path, batch: Any) -> None:
    """batch: rows as they are in the file, with columns of dictionaries.

    Raises:
        DataError: its cells take far more than it.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if (size := _unfolded(column)) > max(FREE_PAGE_BYTES, PAGE_PER_BYTE * column.nbytes):
            raise DataError(
                f"{path}: the column {name} repeats a long value, and unpacks to {size >> 20:,} MiB",
                "if it is no bomb, write the table again without this column",
            )


def _unfolded(array: Any) -> int:
    """Bytes of the texts in dictionaries, each as often as it is there."""
    import pyarrow.compute

    kinds = pyarrow.types
    if kinds.is_dictionary(array.type):
        values = array.dictionary
        if not any(is_one(values.type) for is_one in (kinds.is_string, kinds.is_binary, kinds.is_large_string,
                                                      kinds.is_large_binary)):  # fmt: skip
            return int(len(array) * values.nbytes // max(1, len(values)))
        lengths = pyarrow.compute.binary_length(values)
        return int(pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0)
    if kinds.is_struct(array.type):
        return sum(map(_unfolded, array.flatten()))
    return _unfolded(array.flatten()) if kinds.is_nested(array.type) else 0
