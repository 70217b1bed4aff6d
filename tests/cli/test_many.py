"""Very many pictures: few lines on the screen, each picture in JSON, and no more calls for a picture than among few."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import calls, said
from support.nasty_folder import encoded, picture

from finetune.cli import data_view
from finetune.data import audit as auditing
from finetune.data import dataset, record
from finetune.data import prepare as preparing
from finetune.data.audit import audit
from finetune.data.images.buckets import plan_buckets
from finetune.data.prepare import prepare
from finetune.data.quality import similar
from finetune.data.quality.faults import find_faults
from finetune.errors import DataError
from finetune.planning.schedule import Schedule, by_bucket

WORDS = ("--trigger", "sks", "--class-word", "mug")


def many(folder: Path, number: int, odd: int = 0) -> Path:
    """Pictures of one shape, each with a caption; the first `odd` ones are four times as wide as high."""
    folder.mkdir()
    for i in range(number):
        size = (160, 40) if i < odd else (64, 64)
        (folder / f"{i}.png").write_bytes(encoded(picture(i, size), "PNG"))
        (folder / f"{i}.txt").write_text(f"a sks mug number {i}")
    return folder


def checked(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    code, out, _ = said(capsys, "check", *arguments, *WORDS)
    assert code in (0, 2)
    return out.splitlines()


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_view, "ROWS", 20)
    monkeypatch.setattr(data_view, "LINES", 5)


@pytest.mark.usefixtures("few_rows")
def test_check_prints_as_many_lines_for_forty_pictures_as_for_twice_as_many(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = [checked(capsys, many(tmp_path / str(number), number, odd=9)) for number in (40, 80)]
    assert len(shown[0]) == len(shown[1]) < 25
    text = "\n".join(shown[0])
    assert "40 images, 9 of them with a remark (--all lists every image)" in text and "and 4 more with a remark" in text
    assert sum(line.startswith(("0.png", "4.png")) for line in shown[0]) == 2 and "5.png  " not in text
    assert "512x512" in text and "31" in text and "seen 40 = used 40 + rejected 0" in text


@pytest.mark.usefixtures("few_rows")
def test_all_and_json_have_every_picture_and_few_pictures_always_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = many(tmp_path / "photos", 30)
    assert not any(line.startswith("29.png") for line in checked(capsys, folder))
    rows = [line for line in checked(capsys, folder, "--all") if line.split(".png")[0].isdecimal()]
    assert len(rows) == 30
    lines = checked(capsys, folder, "--json")
    found = json.loads("\n".join(lines))
    assert [row["file"] for row in found["images"]] == [f"{i}.png" for i in range(30)]
    assert len(found["notes"]) == 30 and {"file", "text"} == set(found["notes"][0]), "each is upscaled"
    assert len(lines) < 30 + 30 + 80, "a picture takes a line"
    small = many(tmp_path / "few", 20)
    assert sum(line.split(".png")[0].isdecimal() for line in checked(capsys, small)) == 20


@pytest.mark.usefixtures("few_rows")
def test_very_many_rejected_files_are_counted_by_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "MOST_NAMED", 5)
    monkeypatch.setattr(preparing, "MOST_LISTED", 5)
    folder = many(tmp_path / "photos", 3)
    for i in range(30):
        (folder / f"x{i}.png").write_bytes(b"" if i % 3 else encoded(picture(99), "PNG")[:-20])
    lines = checked(capsys, folder)
    assert len(lines) < 25 and any("rejected 25 more (zero bytes: " in line for line in lines)
    assert len(json.loads("\n".join(checked(capsys, folder, "--json")))["rejected"]) == 30
    with pytest.raises(DataError, match=r"30 problems(.|\n)*and 25 more") as raised:
        dataset.read_dataset(folder, trigger="sks")
    assert len(str(raised.value).splitlines()) < 12
    code, out, _ = said(capsys, "prepare", folder, "--out", tmp_path / "out", *WORDS)
    assert code == 0 and "seen 33 = used 3 + rejected 30" in out and "rejected 25 more" in out
    assert len(dataset.read_dataset(tmp_path / "out").card.rejected) == 5


@pytest.mark.usefixtures("few_rows")
def test_remarks_that_differ_from_picture_to_picture_are_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = many(tmp_path / "photos", 30)
    for i in range(30):
        (folder / f"{i}.txt").write_text("a sks mug" + ", and a long way of saying it" * 20 + f", number {i}")
    lines = checked(capsys, folder, "--base", "pocket")
    notes = [line for line in lines if line.startswith("note")]
    assert len(notes) == 6 and notes[-1].split() == ["note", "25", "more"]


def test_a_table_of_json_rows_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    from finetune.cli.options import Output

    for rows in ({}, {"a": []}, {"a": [{"x": "\u202e"}], "b": [1, 2]}):
        Output(True).json_rows({"n": 1, "nested": {"k": [1]}}, rows)
        found = capsys.readouterr().out
        assert json.loads(found) == {"n": 1, "nested": {"k": [1]}, **rows} and "\u202e" not in found


# --- calls -----------------------------------------------------------------------------------------------------------

WORK: dict[str, Callable[[Path, Path], object]] = {
    "a look at photos": lambda raw, _: audit(raw, trigger="sks", class_word="mug"),
    "a dataset that is read": lambda _, made: dataset.read_dataset(made),
    "its buckets and schedule": lambda _, made: planned(dataset.read_dataset(made)),
}


def planned(data: dataset.Dataset) -> None:
    placed = dataset.assign_buckets(data.examples, plan_buckets(512 * 512, 64, 2.0))
    schedule = Schedule(by_bucket([p.bucket.width for p in placed]), 4, 1, 0)
    schedule.visits(schedule.micros_per_epoch + 1)
    for step in range(3):
        schedule.step(step)


@pytest.mark.parametrize("what", WORK)
def test_four_times_as_many_pictures_take_four_times_as_many_calls(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "SETTLED_NS", -(10**10))
    counts = {}
    for number in (20, 60, 180):
        raw = many(tmp_path / f"raw {number}", number)
        made = prepare(raw, tmp_path / f"made {number}", trigger="sks", class_word="mug").root
        WORK[what](raw, made)
        counts[number] = calls(lambda raw=raw, made=made: WORK[what](raw, made))  # type: ignore[misc]
    assert counts[180] - counts[60] <= 1.02 * 3 * (counts[60] - counts[20]), counts
    most = 320 if what == "a look at photos" else 240
    assert (counts[180] - counts[60]) / 120 < most, "of Python and of C, for a picture that is known"


def memory(work: Callable[[], object]) -> int:
    """The most bytes that it holds at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_picture_that_is_known_takes_less_than_two_kilobytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the most that an audit and its findings hold at once."""
    monkeypatch.setattr(record, "SETTLED_NS", -(10**10))
    monkeypatch.setattr(similar, "_BLOCK", 16)
    peaks = []
    for number in (100, 400):
        raw = many(tmp_path / str(number), number)
        audit(raw, trigger="sks", class_word="mug")
        peaks.append(memory(lambda raw=raw: find_faults(audit(raw, trigger="sks", class_word="mug"), 512)))  # type: ignore[misc]
    assert (peaks[1] - peaks[0]) / 300 < 2000, peaks
