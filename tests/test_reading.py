"""Files are read within bounds, and room is made for what they hold, not for what they might."""

import sys
import tracemalloc
from pathlib import Path

import pytest

from finetune import reading
from finetune.errors import DataError


def test_no_more_room_is_made_than_a_file_needs(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"few")
    tracemalloc.start()
    try:
        assert reading.read_bytes(tmp_path / "small", DataError, limit=1 << 30) == b"few"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 9, 10])
def test_a_file_of_up_to_the_limit_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    assert reading.read_bytes(tmp_path / "file", DataError, limit=10) == b"x" * size


def test_a_longer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(DataError, match="more than 10"):
        reading.read_bytes(tmp_path / "file", DataError, limit=10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files of the kernel")
def test_a_file_that_has_more_than_its_size_is_read_whole() -> None:
    told = reading.read_bytes(Path("/proc/self/status"), DataError)
    assert told.startswith(b"Name:") and told.count(b"\n") > 20


def test_lines_of_a_file_that_is_too_large_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\n\nb")
    assert list(reading.byte_lines(tmp_path / "file", 4)) == [b"a\n", b"\n", b"b"]
    assert list(reading.byte_lines(tmp_path / "file", 3)) == []
