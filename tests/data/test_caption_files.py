"""Finding the captions of a folder: the work grows with the number of files, not with its square."""

from pathlib import Path
from typing import ClassVar

import pytest

from finetune.data.text import caption_files


class Name(str):
    """A file name that counts how often it is hashed or compared: what looking it up in a set or a list costs."""

    work: ClassVar[int] = 0

    def __hash__(self) -> int:
        Name.work += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Name.work += 1
        return super().__eq__(other)


def work(root: Path, names: list[str]) -> int:
    Name.work = 0
    caption_files.find_captions(root, [Name(name) for name in names])
    return Name.work


def with_sidecars(root: Path, count: int) -> list[str]:
    for i in range(count):
        (root / f"{i}.txt").write_text(f"mug {i}")
    return [f"{i}{suffix}" for i in range(count) for suffix in (".jpg", ".txt")]


def with_a_table(root: Path, count: int) -> list[str]:
    (root / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.jpg,mug {i}\n" for i in range(count)))
    return ["metadata.csv", *(f"{i}.jpg" for i in range(count))]


@pytest.mark.parametrize("folder", [with_sidecars, with_a_table])
def test_four_times_the_files_are_four_times_the_work(folder, tmp_path: Path) -> None:
    few = work(tmp_path, folder(tmp_path, 100))
    many = work(tmp_path, folder(tmp_path, 400))
    assert 100 <= few and many <= 4.2 * few, (few, many)


def test_sidecars_and_pictures_are_told_apart_by_their_names(tmp_path: Path) -> None:
    names = with_sidecars(tmp_path, 3)
    captions = caption_files.find_captions(tmp_path, names)
    assert captions.texts == {f"{i}.jpg": f"mug {i}" for i in range(3)}
    assert captions.files == {"0.txt", "1.txt", "2.txt"} and not captions.orphans and not captions.problems


def test_pictures_of_one_stem_share_their_sidecar(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in {"mug.txt": "a mug", "sub/mug.txt": "another mug"}.items():
        (tmp_path / name).write_text(text)
    found = caption_files.find_captions(tmp_path, ["mug.jpg", "mug.png", "mug.txt", "sub/mug.jpg", "sub/mug.txt"])
    assert found.texts == {"mug.jpg": "a mug", "mug.png": "a mug", "sub/mug.jpg": "another mug"}
    assert found.files == {"mug.txt", "sub/mug.txt"} and not found.orphans and not found.problems


def test_a_sidecar_without_a_picture_is_rejected_by_name_and_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "jug.txt").write_text("a jug")
    alone = caption_files.find_captions(tmp_path, ["mug.jpg", "jug.txt"])
    assert [(one.file, one.reason) for one in alone.orphans] == [("jug.txt", "caption without image")]
    assert "no image jug beside it" in alone.orphans[0].detail
    assert (alone.source, alone.texts, alone.files, alone.problems) == ("none", {}, set(), [])


def test_two_sidecars_of_one_picture_are_a_problem_and_the_first_is_read(tmp_path: Path) -> None:
    for name in ("mug.caption", "mug.txt"):
        (tmp_path / name).write_text(name)
    found = caption_files.find_captions(tmp_path, ["mug.caption", "mug.jpg", "mug.png", "mug.txt"])
    assert found.problems == ["two captions for mug.jpg: mug.caption and mug.txt; keep one"]
    assert found.texts == {"mug.jpg": "mug.caption", "mug.png": "mug.caption"}
    assert found.files == {"mug.caption", "mug.txt"}
