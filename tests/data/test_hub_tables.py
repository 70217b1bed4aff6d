"""Data sets of the hub are streamed: another version is read anew, and a network that goes away loses nothing."""

import io
from pathlib import Path

import datasets
import pytest
from PIL import Image
from support.sources import picture_bytes, prepared_from, table_rows

from finetune.data.sources import tables
from finetune.data.sources.tables import Selection
from finetune.errors import DataError


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


class Stand:
    """In place of a builder of `datasets` for a data set of the hub."""

    hash = "0123abcd"

    def __init__(self, rows: list[dict[str, object]], broken_after: int | None = None) -> None:
        self.rows, self.broken_after = rows, broken_after

    def as_streaming_dataset(self) -> dict[str, datasets.IterableDataset]:
        return {"train": datasets.IterableDataset.from_generator(self.generated), "validation": None}

    def generated(self):
        for number, row in enumerate(self.rows):
            if number == self.broken_after:
                raise ConnectionError("the network is gone")
            yield row


def test_a_data_set_of_the_hub_is_streamed_and_named_as_the_source(tmp_path, monkeypatch):
    asked = []

    def builder(source, subset, aside):
        asked.append((source.hub, source.revision, subset))
        return Stand(table_rows(range(3)))

    monkeypatch.setattr(tables, "_builder", builder)
    made, notes = prepared_from("org/name@v2:3", tmp_path / "made", selection=Selection(subset="small"))
    assert asked == [("org/name", "v2", "small")] and made.card.source == "org/name@v2"
    assert notes[0].startswith("org/name@v2: split train of train, validation")
    assert {e.attributes.weight for e in made.examples} == {3.0}


def test_a_network_that_goes_away_loses_nothing(tmp_path, monkeypatch):
    rows = table_rows(range(60))
    monkeypatch.setattr(tables, "_builder", lambda *_: Stand(rows, broken_after=57))
    with pytest.raises(DataError, match="org/name cannot be read after row 56: the network is gone") as refused:
        prepared_from("org/name", tmp_path / "made")
    assert "check the network connection" in refused.value.hint and "again to continue" in refused.value.hint
    monkeypatch.setattr(tables, "_builder", lambda *_: Stand(rows))
    made, notes = prepared_from("org/name", tmp_path / "made")
    assert "50 rows were already read" in notes[1] and len(made.examples) == 60


def test_another_version_of_a_hub_data_set_is_read_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_builder", lambda *_: Stand(table_rows(range(60)), broken_after=57))
    with pytest.raises(DataError):
        prepared_from("org/name", tmp_path / "made")
    newer = Stand(table_rows(range(100, 110)))
    newer.hash = "456"
    monkeypatch.setattr(tables, "_builder", lambda *_: newer)
    made, notes = prepared_from("org/name", tmp_path / "made")
    assert "has changed since it was read in part" in notes[1] and len(made.examples) == 10


def test_a_hub_id_without_network_is_a_sentence_with_a_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="there is no folder org/name, and it cannot be read as a hub") as refused:
        prepared_from("org/name", tmp_path / "made")
    assert "check the network connection" in refused.value.hint and not hidden(tmp_path)


def test_a_hub_data_set_cannot_name_files_of_this_machine(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "own.png")
    rows = [{"image": str(tmp_path / "own.png"), "text": "a mug"}, *table_rows([1])]
    monkeypatch.setattr(tables, "_builder", lambda *_: Stand(rows))
    made, _ = prepared_from("org/name", tmp_path / "made")
    assert [r.file for r in made.card.rejected] == ["row 0"] and len(made.examples) == 1


def test_pictures_of_a_hub_data_set_that_are_files_are_fetched_one_by_one_and_a_fault_is_told(tmp_path, monkeypatch):
    import datasets.utils.file_utils as files

    held = {f"hf://datasets/org/name@0123/a/{i}.jpg": picture_bytes(i, "JPEG") for i in range(2)}

    class Gone(Exception):
        """As the libraries of the network raise: of no common class."""

    def xopen(path, mode):
        if path not in held:
            raise Gone("no answer from the hub")
        return io.BytesIO(held[path])

    monkeypatch.setattr(files, "xopen", xopen)
    rows = [{"image": {"bytes": None, "path": path}, "text": "a mug"} for path in held]
    monkeypatch.setattr(tables, "_builder", lambda *_: Stand(rows))
    made, _ = prepared_from("org/name", tmp_path / "made")
    assert [(made.root / e.name).read_bytes() for e in made.examples] == list(held.values())
    held.clear()
    with pytest.raises(DataError, match=r"at hf://datasets/org/name@0123/a/0.jpg: no answer from the hub"):
        prepared_from("org/name", tmp_path / "again")
