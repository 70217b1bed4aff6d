"""A small arrow file cannot take the memory that it names: its sizes are looked at before it is unpacked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.ipc
import pytest
from support.hostile import forked
from support.sources import picture_bytes, prepared_from, table_rows

from finetune.data.sources import arrow_buffers, shared_values
from finetune.data.sources.arrow_buffers import refuse_unpacking
from finetune.errors import DataError

ZEROS = 300 << 20
FORMS = ("stream", "file")


def written(path: Path, table: Any, form: str = "stream", compression: str | None = "zstd") -> Path:
    made = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
    with made(path, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)) as file:
        file.write_table(table)
    return path


def packed_zeros(size: int = ZEROS) -> Any:
    return pyarrow.table({"image": [picture_bytes(1), bytes(size)], "text": ["a mug", "a bomb"]})


def one_text_in_many_cells(rows: int = 300, size: int = 1 << 20) -> Any:
    shared = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), ["x" * size])
    return pyarrow.table({"image": [picture_bytes(1)] * rows, "text": shared})


BOMBS: dict[str, Callable[[], Any]] = {
    "unpacks to more than 128 MiB": packed_zeros,
    "the column text repeats a long value, and unpacks to 300 MiB": one_text_in_many_cells,
}


@pytest.mark.parametrize("said", BOMBS)
def test_a_small_table_is_refused_before_it_takes_what_it_names(tmp_path: Path, said: str) -> None:
    path, here = tmp_path / "t.arrow", tmp_path / "here"
    here.mkdir()

    def make() -> None:  # in a process of its own: what this one holds does not grow
        written(path, BOMBS[said]())

    assert forked(make, here).code == 0
    assert path.stat().st_size < 100_000

    def refused() -> None:
        with pytest.raises(DataError, match=said):
            prepared_from(str(path), tmp_path / "made")

    tried = forked(refused, here)
    assert tried.code == 0, tried.text
    assert tried.peak_bytes < 150 << 20, f"{tried.peak_bytes >> 20} MiB"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_both_forms_and_both_compressions_are_looked_into(
    tmp_path: Path, form: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_buffers, "FREE_PAGE_BYTES", 1000)
    path = written(tmp_path / "t.arrow", packed_zeros(1 << 20), form, compression)
    with pytest.raises(DataError, match=rf"t.arrow has {path.stat().st_size:,} bytes, and unpacks to more than"):
        refuse_unpacking(path)
    dictionary = one_text_in_many_cells(1).select(["text"])
    with pytest.raises(DataError, match="unpacks to more than"):
        refuse_unpacking(written(tmp_path / "d.arrow", dictionary, form, compression))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_an_honest_file_is_read_however_it_is_packed(
    tmp_path: Path, form: str, compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (arrow_buffers, shared_values):
        monkeypatch.setattr(module, "FREE_PAGE_BYTES", 1000)
    table = pyarrow.Table.from_pylist(table_rows(range(5)))
    table = table.set_column(1, "text", table["text"].dictionary_encode())
    made, _ = prepared_from(str(written(tmp_path / "t.arrow", table, form, compression)), tmp_path / "made")
    assert [e.caption for e in made.examples] == [f"a sks mug of row {n}" for n in range(5)]


def test_a_saved_data_set_names_files_of_any_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_buffers, "FREE_PAGE_BYTES", 1000)
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(table_rows(range(2))).save_to_disk(str(saved))
    (own,) = saved.glob("*.arrow")
    state = (saved / "state.json").read_text().replace(own.name, "rows.bin")
    (saved / "state.json").write_text(state)
    own.rename(saved / "rows.bin")
    assert len(prepared_from(str(saved), tmp_path / "made")[0].examples) == 2
    written(saved / "rows.bin", packed_zeros(1 << 20))
    with pytest.raises(DataError, match=r"rows.bin has .* unpacks to more than"):
        prepared_from(str(saved), tmp_path / "again")
