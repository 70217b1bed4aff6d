"""Finding the captions of a folder: the work grows with the number of files, not with its square."""

from pathlib import Path
from typing import ClassVar

import pytest

from finetune.data import caption_files


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
