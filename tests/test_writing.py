"""A place is tried before long work, and nothing of the trial is left."""

import os
import shutil
from pathlib import Path

import pytest

from finetune.errors import RunError
from finetune.writing import reserve, try_file, try_folder


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept.txt").write_text("mine")
    before = contents(tmp_path)
    try_folder(tmp_path / "new" / "deep", ("a.png", "b" * 200), needed=1000)
    try_folder(tmp_path / "there", ("kept.txt",))
    try_file(tmp_path / "there" / "kept.txt")
    assert contents(tmp_path) == before and (tmp_path / "there/kept.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "place, said",
    [
        ("file/new", "Not a directory"), ("file", "File exists"), ("n" * 300, "too long"),
        ("loop/new", "symbolic links"), ("a\0b", "null"), ("/dev/null/new", "Not a directory"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_is_refused_in_words(place: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = contents(tmp_path)
    with pytest.raises(RunError, match=said) as refused:
        try_folder(tmp_path / place)
    assert "cannot write into" in refused.value.problem and "another `out`" in refused.value.hint
    assert contents(tmp_path) == before


def test_the_longest_of_the_names_must_fit_with_what_a_half_written_file_is_called_by(tmp_path: Path) -> None:
    try_folder(tmp_path, ("short", "n" * 200))
    with pytest.raises(RunError, match="too long"):
        try_folder(tmp_path, ("short", "n" * 250))


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="it is a folder"):
        try_file(tmp_path)


def test_room_is_asked_for_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(tmp_path, 1 << 20)
    with pytest.raises(OSError, match="GiB needed"):
        reserve(tmp_path, 1 << 60)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1 << 60))  # type: ignore[attr-defined]
    if hasattr(os, "posix_fallocate"):
        with pytest.raises(OSError, match=r"space|large"):
            reserve(tmp_path, 1 << 59)
    assert contents(tmp_path) == []
