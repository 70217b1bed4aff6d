"""A small parquet file cannot take the memory that it names: its pages are looked at before they are unpacked."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from support.sources import picture_bytes, prepared_from, table_rows, write_parquet

from finetune.data.sources import parquet, parquet_pages
from finetune.data.sources.parquet import ParquetRows
from finetune.data.sources.parquet_pages import largest_page, pages
from finetune.data.text import tables as texts
from finetune.errors import DataError

ZEROS = 300 << 20
_MEASURED = """
import re, sys
from pathlib import Path
from finetune.data.prepare import prepare
from finetune.errors import DataError
import datasets, pyarrow.parquet
def peak():  # not ru_maxrss, which begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
base = peak()
try:
    prepare(sys.argv[1], Path(sys.argv[2]), trigger="sks", class_word="mug")
except DataError as e:
    print(e.problem)
print((peak() - base) >> 10)
"""


def written(path: Path, table: Any, **said: Any) -> Path:
    pyarrow.parquet.write_table(table, path, compression="zstd", **said)
    return path


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, and a row of 300 MiB in some kilobytes."""
    rows = {"image": [picture_bytes(1), bytes(ZEROS)], "text": ["a mug", "a bomb"]}
    return written(tmp_path_factory.mktemp("bomb") / "t.parquet", pyarrow.table(rows))


def said_of(source: Path, out: Path) -> tuple[str, int]:
    """(what `prepare` says, the MiB that it takes more than its libraries), in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(source), str(out)], capture_output=True, text=True, check=True
    )
    *told, grown = done.stdout.splitlines()
    return "\n".join(told), int(grown)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak memory there")
def test_a_bomb_is_refused_before_it_is_unpacked(bomb: Path, tmp_path: Path) -> None:
    assert bomb.stat().st_size < 100_000
    told, grown = said_of(bomb, tmp_path / "made")
    assert "t.parquet: a page of the column image has" in told and "unpacks to 300 MiB" in told
    assert grown < 100, f"{grown} MiB"


def test_a_bomb_in_a_folder_of_tables_is_refused_as_well(bomb: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train-00000-of-00002.parquet", table_rows([1]))
    (tmp_path / "set" / "train-00001-of-00002.parquet").write_bytes(bomb.read_bytes())
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet: a page of the column image") as refused:
        prepared_from(str(tmp_path / "set"), tmp_path / "made")
    assert "fewer rows in a row group" in refused.value.hint


def test_an_honest_file_of_large_pages_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_pages, "FREE_PAGE_BYTES", 1000)
    made, _ = prepared_from(str(write_parquet(tmp_path / "t.parquet", table_rows(range(40)))), tmp_path / "made")
    assert len(made.examples) == 40 and largest_page(tmp_path / "t.parquet", None) > 100_000


def test_one_value_that_many_rows_share_is_not_held_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary's value is in the file once, and in a batch once for each row."""
    one = picture_bytes(1, size=(200, 200))
    path = written(tmp_path / "t.parquet", pyarrow.table({"image": [one] * 50, "text": ["a mug"] * 50}))
    sizes: list[int] = []
    real = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self: Any, at_once: int, *more: Any, **said: Any) -> Any:
        sizes.append(at_once)
        return real(self, at_once, *more, **said)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 3 * largest_page(path, ["image"]))
    assert [row["image"] for row in ParquetRows([path], ())] == [one] * 50
    assert [row["text"] for row in ParquetRows([path], (), ["text"])] == ["a mug"] * 50
    assert sizes == [3, parquet.ROWS_AT_ONCE]


def test_rows_go_on_in_the_file_where_they_were_left(tmp_path: Path) -> None:
    paths = [write_parquet(tmp_path / f"{n}.parquet", table_rows(range(10 * n, 10 * n + 10)), 3) for n in range(3)]
    whole = [row["text"] for row in ParquetRows(paths, ())]
    assert whole == [f"a mug of row {n}" for n in range(30)]
    for start in (0, 2, 3, 9, 10, 17, 29, 30):
        rows = ParquetRows(paths, ()).select_columns(["text"])
        rows.load_state_dict({"row": start})
        assert [row["text"] for row in rows] == whole[start:] and rows.state_dict() == {"row": 30}


@pytest.mark.parametrize(
    "said", [{}, {"data_page_version": "2.0"}, {"write_page_checksum": True}, {"use_dictionary": False},
             {"data_page_size": 100}, {"write_page_index": True}, {"row_group_size": 3}]
)  # fmt: skip
def test_the_pages_of_any_file_add_up_to_it(tmp_path: Path, said: dict[str, Any]) -> None:
    """Each byte between the first page and the last is of a page or of its header."""
    rows = [row | {"tags": ["a", "b"], "n": n, "ok": n > 3, "x": n / 7} for n, row in enumerate(table_rows(range(12)))]
    path = written(tmp_path / "t.parquet", pyarrow.Table.from_pylist(rows), **said)
    told = pyarrow.parquet.read_metadata(path)
    chunks = [told.row_group(g).column(c) for g in range(told.num_row_groups) for c in range(told.num_columns)]
    found = list(pages(path, None))
    for name in {chunk.path_in_schema for chunk in chunks}:
        own, of_it = [c for c in chunks if c.path_in_schema == name], [p for p in found if p.column == name]
        assert sum(c.total_compressed_size for c in own) - sum(p.compressed for p in of_it) < 200 * len(of_it)
        assert sum(c.total_uncompressed_size for c in own) - sum(p.uncompressed for p in of_it) < 200 * len(of_it)


def test_lists_of_an_honest_table_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, tags and numbers of which many are alike, and pages of both versions."""
    monkeypatch.setattr(parquet_pages, "FREE_PAGE_BYTES", 1000)
    rows = [{"tags": ["a", "b", f"c{n}"], "n": [n, n + 1], "at": [n / 7] * 3, "none": None} for n in range(60)]
    path = tmp_path / "t.parquet"
    for said in ({}, {"use_dictionary": False}, {"row_group_size": 7}, {"data_page_version": "2.0"}):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **said)
        assert list(ParquetRows([path], ())) == rows


@pytest.mark.parametrize("said", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False, "data_page_size": 1000}])
def test_values_of_lists_are_counted_over_all_pages(tmp_path: Path, said: dict[str, Any]) -> None:
    path = tmp_path / "t.parquet"
    zeros = pyarrow.array(numpy.zeros(17_000_000, numpy.int64))
    table = pyarrow.table({"n": pyarrow.ListArray.from_arrays([0, len(zeros) // 2, len(zeros)], zeros)})
    pyarrow.parquet.write_table(table, path, compression="zstd", **said)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"column n.list.element have .* unpack to 129 MiB"):
        largest_page(path, None)
    assert largest_page(path, ["other"]) == 0


def test_a_header_that_is_damaged_is_said(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", table_rows([1]))
    content = bytearray(path.read_bytes())
    content[4:12] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a page of the column image.bytes has a header that is damaged"):
        prepared_from(str(path), tmp_path / "made")


def test_a_table_of_captions_that_unpacks_to_more_than_texts_may_have_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside pictures: a text that each of many rows shares is in the file once."""
    (tmp_path / "in").mkdir()
    names = [f"{n}.png" for n in range(20)]
    for n, name in enumerate(names):
        (tmp_path / "in" / name).write_bytes(picture_bytes(n))
    written(tmp_path / "in" / "metadata.parquet", pyarrow.table({"file_name": names, "text": ["a mug " * 1000] * 20}))
    problems: list[str] = []
    assert len(texts.read_rows(tmp_path / "in", "metadata.parquet", problems)) == 20 and not problems
    monkeypatch.setattr(texts.reading, "TEXT_BYTES", 20_000)
    assert (
        texts.read_rows(tmp_path / "in", "metadata.parquet", problems) == [] and "unpacks to more than" in problems[0]
    )
    monkeypatch.undo()
    monkeypatch.setattr(texts, "MOST_ROWS", 19)
    assert texts.read_rows(tmp_path / "in", "metadata.parquet", problems) == [] and "19 rows" in problems[1]
