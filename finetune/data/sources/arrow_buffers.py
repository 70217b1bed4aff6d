"""How much memory an arrow file takes to be read: its batches may be compressed, and are unpacked whole.

Each compressed buffer begins with its size when unpacked, which its reader goes by. Format: Message.fbs and File.fbs
(Apache Arrow), tables of FlatBuffers; Pyarrow has checked those that are looked into here.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.sources.parquet_pages import FREE_PAGE_BYTES, PAGE_PER_BYTE
from finetune.data.sources.shared_values import refuse_shared
from finetune.errors import DataError

_MAGIC = b"ARROW1"
"""of a file with a list of its batches at the end; others are streams"""
_EARLY = b"ARROW:experimental_compression"
"""in the metadata of compressed batches before Arrow 1.0"""


def refuse_unpacking(path: Path) -> None:
    """Of a file that is not whole the reader tells.

    Raises:
        DataError: its batches unpack to far more than its size, or its cells share a long value.
    """
    import pyarrow

    size = path.stat().st_size
    left = most = max(FREE_PAGE_BYTES, PAGE_PER_BYTE * size)
    try:
        with pyarrow.memory_map(str(path)) as content:
            for message in _messages(content, size):
                left -= _unpacked(message)
                if left < 0:
                    raise DataError(
                        f"{path} has {size:,} bytes, and unpacks to more than {most >> 20:,} MiB",
                        "if it is no bomb, write the table as parquet, or without compression",
                    )
            for batch in _with_dictionaries(content):
                batch.validate(full=True)
                refuse_shared(path, batch)
    except (pyarrow.ArrowException, EOFError):
        return


def _messages(content: Any, size: int) -> Iterator[Any]:
    """Of a file that is mapped into memory, of which no more is read than is looked at."""
    import pyarrow.ipc

    if content.read(len(_MAGIC)) == _MAGIC:
        pyarrow.ipc.open_file(content)
        content.seek(size - len(_MAGIC) - 4)
        length = struct.unpack("<i", content.read(4))[0]
        content.seek(size - len(_MAGIC) - 4 - length)
        listed = _Table(content.read(length))
        for start in (*listed.structs(2, 24), *listed.structs(3, 24)):  # dictionaries, batches
            content.seek(listed.number("<q", start))
            yield pyarrow.ipc.read_message(content)
        return
    content.seek(0)
    yield from pyarrow.ipc.MessageReader.open_stream(content)


def _with_dictionaries(content: Any) -> Iterator[Any]:
    """The batches of a file that has columns of dictionaries."""
    import pyarrow.ipc

    content.seek(0)
    listed = content.read(len(_MAGIC)) == _MAGIC
    content.seek(0)
    reader = pyarrow.ipc.open_file(content) if listed else pyarrow.ipc.open_stream(content)
    if "dictionary<" in str(reader.schema):
        yield from map(reader.get_batch, range(reader.num_record_batches)) if listed else reader


def _unpacked(message: Any) -> int:
    """Bytes of its compressed buffers when they are unpacked."""
    if message.type not in ("record batch", "dictionary"):
        return 0
    data = message.metadata.to_pybytes()
    batch = _Table(data).table(2)
    batch = batch.table(1) if message.type == "dictionary" else batch
    if not batch.place(3) and _EARLY not in data:
        return 0
    found, body = 0, memoryview(message.body)
    for start in batch.structs(2, 16):
        offset, length = batch.number("<q", start), batch.number("<q", start + 8)
        if length >= 8 and 0 <= offset <= len(body) - 8:
            found += max(0, struct.unpack_from("<q", body, offset)[0])
    return found


class _Table:
    """Of FlatBuffers: fields by their numbers, whose places are in a list that the table begins with."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self._data = data
        self._at = self.number("<I", 0) if at is None else at
        self._places = self._at - self.number("<i", self._at)

    def number(self, kind: str, at: int) -> int:
        return int(struct.unpack_from(kind, self._data, at)[0])

    def place(self, field: int) -> int:
        """Where a field is; 0: it is not there."""
        at = 4 + 2 * field
        inside = self.number("<H", self._places + at) if at < self.number("<H", self._places) else 0
        return self._at + inside if inside else 0

    def table(self, field: int) -> "_Table":
        place = self.place(field)
        return _Table(self._data, place + self.number("<I", place))

    def structs(self, field: int, size: int) -> range:
        """Where each of a list is."""
        if not (place := self.place(field)):
            return range(0)
        start = place + self.number("<I", place)
        return range(start + 4, start + 4 + size * self.number("<I", start), size)
