"""A picture that was seen before and is unchanged is not read again; one that may have changed always is."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.photos import photos

from finetune.data import dataset, examine, folder, record
from finetune.data.audit import Audit, audit
from finetune.data.example import Dataset
from finetune.data.images import decode
from finetune.data.prepare import prepare
from finetune.errors import DataError

WORDS = {"trigger": "sks", "class_word": "cup"}


class Reads(list[str]):
    """Names of the picture files that were read."""

    def of(self, work: Callable[[], object]) -> list[str]:
        self.clear()
        work()
        return sorted(self)


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / record.KEPT_IN


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found, read = Reads(), decode.contents

    def counted(path: Path, digest: str = "") -> bytes:
        found.append(path.name)
        return read(path, digest)

    monkeypatch.setattr(decode, "contents", counted)
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if files were as old as files are."""
    monkeypatch.setattr(record, "SETTLED_NS", -(10**10))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", ((64, 64),) * 4)


def read(data: Path) -> Dataset:
    return dataset.read_dataset(data, trigger="sks")


def looked_at(data: Path) -> Audit:
    return audit(data, trigger="sks")


@pytest.mark.usefixtures("settled")
def test_unchanged_pictures_are_read_once_by_all_commands(data: Path, reads: Reads) -> None:
    first = looked_at(data)
    assert len(reads) == 4
    assert reads.of(lambda: read(data)) == [] and reads.of(lambda: looked_at(data)) == []
    assert looked_at(data) == first and read(data).examples == first.used


def rewritten(file: Path) -> None:
    """Of the same size, and its time put back."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(file: Path) -> None:
    """By another file of the same size and time, under its name."""
    before, beside = file.stat(), file.with_name("beside")
    beside.write_bytes(bytes(file.stat().st_size))
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(beside, file)


def lengthened(file: Path) -> None:
    with file.open("ab") as more:
        more.write(b"x")


def touched(file: Path) -> None:
    os.utime(file, (1, 1))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [rewritten, replaced, lengthened, touched])
def test_a_picture_that_changed_in_any_way_is_read_again(
    change: Callable[[Path], None], data: Path, reads: Reads
) -> None:
    before = looked_at(data)
    change(data / "1.png")
    assert reads.of(lambda: looked_at(data)) == ["1.png"]
    now = {e.name: e.digest for e in looked_at(data).used}
    if change is not touched:
        assert now.get("1.png") != before.used[1].digest


@pytest.mark.usefixtures("settled")
def test_a_link_that_leads_elsewhere_is_another_picture(data: Path, reads: Reads) -> None:
    (data / "a.png").symlink_to(data / "1.png")
    (data / "a.txt").write_text("a link")
    assert "the same bytes as 1.png" in str(looked_at(data).rejected)
    (data / "a.png").unlink()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(data / "5.png")
    (data / "5.txt").write_text("a sks cup number 5")
    (data / "a.png").symlink_to(data / "5.png")
    assert reads.of(lambda: looked_at(data)) == ["5.png", "a.png"]
    assert "the same bytes as 5.png" in str(looked_at(data).rejected)


@pytest.mark.parametrize("seconds, again", [(1.0, 4), (5.0, 0)])
def test_a_picture_that_was_changed_just_before_it_was_read_is_read_again(
    seconds: float, again: int, data: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change once more within one tick of the disk's clock, and look the same."""
    changed = max((data / f"{i}.png").stat().st_ctime_ns for i in range(4))
    monkeypatch.setattr(folder, "now_ns", lambda: changed + int(seconds * 1e9))
    looked_at(data)
    assert len(reads.of(lambda: looked_at(data))) == again


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: c[:80] + b"?" + c[81:], lambda _: b""])
def test_a_damaged_record_is_worth_nothing(
    damage: Callable[[bytes], bytes], data: Path, reads: Reads, own_records: Path
) -> None:
    looked_at(data)
    (kept,) = own_records.glob("*.seen")
    kept.write_bytes(damage(kept.read_bytes()))
    assert len(reads.of(lambda: looked_at(data))) == 4
    assert reads.of(lambda: looked_at(data)) == []


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("other", ["DECODER", "RECORD_VERSION"])
def test_what_another_decoder_or_version_found_is_found_again(
    other: str, data: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at(data)
    monkeypatch.setattr(record, other, "another")
    assert len(reads.of(lambda: looked_at(data))) == 4


@pytest.mark.usefixtures("settled")
def test_files_that_are_gone_are_forgotten_and_odd_names_are_never_kept(
    data: Path, reads: Reads, own_records: Path
) -> None:
    (data / "1.png").rename(data / "one\tor\ntwo.png")
    (data / "1.txt").rename(data / "one\tor\ntwo.txt")
    looked_at(data)
    for end in ("png", "txt"):
        (data / f"2.{end}").unlink()
    lengthened(data / "3.png")
    assert reads.of(lambda: looked_at(data)) == ["3.png", "one\tor\ntwo.png"]
    (kept,) = own_records.glob("*.seen")
    assert [line.split("\t")[0] for line in kept.read_text().splitlines()[2:]] == ["0.png", "3.png"]


@pytest.mark.usefixtures("settled")
def test_a_picture_that_cannot_be_used_is_looked_at_each_time(data: Path, reads: Reads) -> None:
    (data / "1.png").write_bytes((data / "1.png").read_bytes()[:-30])
    assert [r.reason for r in looked_at(data).rejected] == ["truncated"]
    assert reads.of(lambda: looked_at(data)) == ["1.png"]
    with pytest.raises(DataError, match="truncated"):
        read(data)


@pytest.mark.usefixtures("settled")
def test_a_prepared_dataset_is_not_read_to_be_planned_and_is_decoded_once_to_be_checked(
    data: Path, tmp_path: Path, reads: Reads
) -> None:
    Image.open(data / "1.png").convert("L").save(data / "1.png")
    made = prepare(data, tmp_path / "out", **WORDS)
    assert sorted(reads) == sorted(2 * [f"{i}.png" for i in range(4)]), "looked at, and copied or converted"
    assert reads.of(lambda: dataset.read_dataset(made.root)) == []
    assert len(reads.of(lambda: audit(made.root))) == 4 and reads.of(lambda: audit(made.root)) == []
    written = {e.name: e for e in made.examples}
    assert {e.name: (e.digest, e.size) for e in audit(made.root).used} == {
        n: (e.digest, e.size) for n, e in written.items()
    }


def test_what_prepare_wrote_just_now_may_still_change(data: Path, tmp_path: Path, reads: Reads) -> None:
    made = prepare(data, tmp_path / "out", **WORDS)
    assert len(reads.of(lambda: dataset.read_dataset(made.root))) == 4


@pytest.mark.usefixtures("settled")
def test_another_background_is_another_picture(data: Path, reads: Reads) -> None:
    looked_at(data)
    black = dict.fromkeys(["background"], (0, 0, 0))
    assert len(reads.of(lambda: audit(data, trigger="sks", **black))) == 4  # type: ignore[arg-type]
    assert reads.of(lambda: looked_at(data)) == []


def test_a_cache_that_cannot_be_written_is_done_without(
    data: Path, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(examine, "MANY", 1)
    for _ in range(2):
        assert len(reads.of(lambda: looked_at(data))) == 4


@pytest.mark.usefixtures("settled")
def test_what_was_seen_before_a_look_is_interrupted_is_kept(
    data: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = decode.contents

    def interrupted(path: Path, digest: str = "") -> bytes:
        if path.name == "2.png":
            raise KeyboardInterrupt
        return counted(path, digest)

    with monkeypatch.context() as patched:
        patched.setattr(decode, "contents", interrupted)
        with pytest.raises(KeyboardInterrupt):
            looked_at(data)
    assert reads.of(lambda: looked_at(data)) == ["2.png", "3.png"]


@pytest.mark.usefixtures("settled")
def test_of_two_processes_one_looks_and_the_other_waits_for_it(
    data: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "MANY", 1)
    first = Holding(reads, monkeypatch)
    with first.begun(lambda: looked_at(data)):
        second = threading.Thread(target=lambda: looked_at(data))
        second.start()
        time.sleep(0.3)
        assert len(reads) == 1 and second.is_alive(), "it waits"
    second.join()
    assert len(reads) == 4


class Holding:
    """The first picture of the first look is not read until the block ends."""

    def __init__(self, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.came, counted = threading.Event(), threading.Event(), decode.contents

        def held(path: Path, digest: str = "") -> bytes:
            content = counted(path, digest)
            self.came.set()
            assert self.go.wait(60)
            return content

        monkeypatch.setattr(decode, "contents", held)

    def begun(self, work: Callable[[], object]) -> "Holding":
        self.thread = threading.Thread(target=work)
        self.thread.start()
        assert self.came.wait(60)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.thread.join()


@pytest.mark.usefixtures("settled")
def test_records_are_counted_and_cleared_and_no_link_is_followed(data: Path, own_records: Path, tmp_path: Path) -> None:
    looked_at(data)
    root = own_records.parent
    assert record.records(root).datasets == 1 and record.records(root).bytes > 0
    (own_records / "notes.txt").write_text("mine")
    record.forget(root)
    assert record.records(root) == (0, 0) and [p.name for p in own_records.iterdir()] == ["notes.txt"]
    elsewhere = tmp_path / "elsewhere"
    own_records.rename(elsewhere)
    foreign = elsewhere / f"{'0f' * 32}.seen"
    foreign.touch()
    own_records.symlink_to(elsewhere)
    record.forget(root)
    assert foreign.is_file() and own_records.is_symlink()
