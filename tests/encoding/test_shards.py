"""Shards: what is counted on without being read, what a kill leaves, who writes where, and what was before them."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import saving
from finetune import tensors as weights
from finetune.encoding import shards
from finetune.encoding.entries import EntryIndex
from finetune.encoding.shards import Shards
from finetune.encoding.sizes import KEY_BYTES, ROW_BYTES
from finetune.encoding.store import Store, entry_key, usage
from finetune.errors import RunError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def key(n: int) -> bytes:
    return hashlib.sha256(str(n).encode()).digest()


def entry(n: int) -> dict[str, torch.Tensor]:
    return {"x": torch.full((4, 3), float(n))}


def put(store: Store, *numbers: int, sealed: bool = True) -> None:
    for n in numbers:
        store.put("image", key(n), entry(n))
    if sealed:
        store.seal("image")


def found(store: Store, *numbers: int) -> EntryIndex:
    """As a run that starts sees it."""
    return Store(store.root.parent).entries("image", [key(n) for n in numbers])


def there(store: Store, *numbers: int) -> list[bool]:
    entries = found(store, *numbers)
    return [entries.has(n) for n in entries.numbers]


def file(store: Store, suffix: str) -> Path:
    (one,) = (store.root / "image").glob(f"*.{suffix}")
    return one


def spoil(path: Path, start: int, size: int = 20) -> None:
    saving.overwrite(bytes(size), path, start)


def test_entries_are_what_was_put_each_under_its_own_key(store: Store) -> None:
    put(store, *range(20))
    entries = found(store, *range(19, -1, -1), 99)
    assert [entries.has(n) for n in entries.numbers] == [True] * 20 + [False]
    for n, number in zip(range(19, -1, -1), entries.numbers, strict=False):
        read = entries.read(number)
        assert read is not None and torch.equal(read["x"], entry(n)["x"])
    assert entries.read(entries.numbers[-1]) is None and entries.missing() == [entries.numbers[-1]]


def test_equal_keys_are_one_entry(store: Store) -> None:
    put(store, 1, 1)
    entries = found(store, 1, 2, 1)
    assert len(entries) == 2 and entries.numbers[0] == entries.numbers[2] != entries.numbers[1]


def test_a_start_reads_no_entry_of_a_sealed_shard(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, *range(10))
    monkeypatch.setattr(Shards, "read", lambda *_: pytest.fail("it was read"))
    assert all(there(store, *range(10)))


def test_an_open_shard_is_read_before_it_is_counted_on(store: Store) -> None:
    """A power cut keeps the row and loses what it names."""
    put(store, *range(3), sealed=False)
    assert all(there(store, *range(3)))
    row = np.frombuffer(file(store, "open").read_bytes(), shards.ROW)[1]
    spoil(file(store, "shard"), int(row["start"]) + 40)
    assert there(store, *range(3)) == [True, False, True]


def test_what_was_sealed_is_on_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """First what is named, then the index, then its name."""
    done, flush, rename = list[str](), saving.flush_file, Path.rename
    monkeypatch.setattr(saving, "flush_file", lambda path: (done.append(path.suffix), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(to.suffix), rename(path, to)))
    put(store, 1)
    assert done == [".shard", ".open", ".index"]


def test_a_shard_that_cannot_be_flushed_stays_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "flush_file", full)
    put(store, 1)
    assert file(store, "open") and there(store, 1) == [True]
    monkeypatch.undo()
    put(store, 2)
    assert len(list((store.root / "image").glob("*.shard"))) == 2, "what was closed is written no more"
    assert there(store, 1, 2) == [True, True]


@pytest.mark.parametrize("limit, value", [("SHARD_ENTRIES", 3), ("SHARD_BYTES", 400)])
def test_a_writer_begins_another_shard_after_some(
    limit: str, value: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, limit, value)
    put(store, *range(8))
    assert len(list((store.root / "image").glob("*.index"))) == len(list((store.root / "image").glob("*.shard"))) == 3
    assert all(there(store, *range(8))) and usage(store.root.parent).images == 8


def test_a_fork_writes_into_a_shard_of_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 1, sealed=False)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    put(store, 2)
    monkeypatch.undo()
    put(store, 3)
    suffixes = Counter(path.suffix for path in (store.root / "image").iterdir())
    assert suffixes == {".shard": 3, ".index": 2, ".open": 1}
    assert there(store, 1, 2, 3) == [True] * 3


def test_a_part_of_a_row_that_a_kill_left_is_written_over(store: Store) -> None:
    put(store, 1, sealed=False)
    with file(store, "open").open("ab") as index:
        index.write(b"half a row")
    put(store, 2)
    assert there(store, 1, 2) == [True, True] and file(store, "index").stat().st_size == 2 * ROW_BYTES


def test_another_process_clears_the_cache_while_one_writes(store: Store) -> None:
    put(store, 1, sealed=False)
    for path in (store.root / "image").iterdir():
        path.unlink()
    (store.root / "image").rmdir()
    put(store, 2)
    assert there(store, 1, 2) == [False, True]


def test_what_another_process_put_since_is_found_and_what_it_closes_too(store: Store) -> None:
    entries = found(store, 1, 2, 3)
    put(store, 1, sealed=False)
    entries.refresh()
    assert entries.missing() == sorted(entries.numbers[1:])
    put(store, 2)
    entries.refresh()
    assert entries.missing() == [entries.numbers[2]]
    for n in (0, 1):
        read = entries.read(entries.numbers[n])
        assert read is not None and torch.equal(read["x"], entry(n + 1)["x"])


# --- damage that is found when an entry is due ------------------------------------------------------------------------


def test_what_is_damaged_is_dropped_with_all_that_is_damaged_beside_it_and_nothing_else(store: Store) -> None:
    put(store, *range(6))
    rows = np.frombuffer(file(store, "index").read_bytes(), shards.ROW)
    for n in (1, 4):
        spoil(file(store, "shard"), int(rows[n]["start"]) + 50)
    entries = found(store, *range(6))
    assert not entries.missing(), "a start takes it for there"
    assert entries.read(entries.numbers[1]) is None
    entries.drop(entries.numbers[1])
    assert there(store, *range(6)) == [True, False, True, True, False, True]
    assert usage(store.root.parent).images == 4
    put(store, 1, 4)
    assert all(there(store, *range(6))) and not [n for n in range(6) if found(store, n).read(0) is None]


def test_an_entry_under_the_key_of_another_is_none(store: Store) -> None:
    put(store, 1, 2)
    index = file(store, "index")
    rows = np.frombuffer(index.read_bytes(), shards.ROW).copy()
    rows["key"] = rows["key"][::-1].copy()
    index.write_bytes(rows.tobytes())
    assert found(store, 1).read(0) is None and found(store, 2).read(0) is None


def test_a_cache_that_cannot_be_mended_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    put(store, 1)
    spoil(file(store, "shard"), 50)
    monkeypatch.setattr(saving, "overwrite", read_only)
    entries = found(store, 1)
    with pytest.raises(RunError, match=r"cannot write into the cache .*Permission"):
        entries.drop(0)


# --- the format before ------------------------------------------------------------------------------------------------


def old_entry(store: Store, n: int, change: Callable[[bytes], bytes] = bytes) -> Path:
    path = store.root.parent / "v2/image" / key(n).hex()[:2] / f"{key(n).hex()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.write_tensors(entry(n), path, {"sha256": weights.fingerprint(entry(n))})
    path.write_bytes(change(path.read_bytes()))
    return path


def test_keys_are_those_of_the_format_before() -> None:
    """Recorded; what was encoded by an earlier version is found."""
    assert entry_key("ab", 3, "cd").hex() == hashlib.sha256(b"'2'\0'ab'\x003\0'cd'").hexdigest()


def test_an_entry_of_the_format_before_is_moved_into_a_shard(store: Store) -> None:
    path = old_entry(store, 1)
    entries = store.entries("image", [key(1)])
    assert not entries.has(0) and entries.take_over(0) and entries.has(0) and not path.exists()
    store.seal("image")
    read = found(store, 1).read(0)
    assert read is not None and torch.equal(read["x"], entry(1)["x"])


def test_a_damaged_one_is_not(store: Store) -> None:
    path = old_entry(store, 1, lambda content: content[:-1] + b"x")
    assert not store.entries("image", [key(1)]).take_over(0) and path.exists()
    assert not store.entries("image", [key(2)]).take_over(0)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_what_is_held_of_an_entry_is_its_key(store: Store) -> None:
    entries = store.entries("image", [key(n) for n in range(5000)])
    held = entries._places.nbytes + entries._order.nbytes
    assert held < KEY_BYTES / 2 * len(entries)
