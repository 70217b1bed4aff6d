"""What an adapter's files are called: taken by every system, and the name that was asked for where that is one."""

from pathlib import Path

import pytest

from finetune.planning.names import MOST_BYTES, exported_name, file_name, renamed


@pytest.mark.parametrize(
    "wanted, name",
    [
        ("mug", "mug"), ("my mug run", "my mug run"), ("Tasse-grün_2.1", "Tasse-grün_2.1"), ("-x", "x"),
        (".mug", "mug"),
        ("- .-", "adapter"), ("", "adapter"), ("a:b|c?", "a_b_c_"), ("con", "con_"), ("NUL.txt", "NUL_.txt"),
        ("console", "console"), ("com1", "com1_"), ("mug. ", "mug"), ("a\x00\nb\udce9", "a__b_"), ("a\u202eb", "a_b"),
    ],
)  # fmt: skip
def test_the_nearest_name_that_no_system_refuses(wanted: str, name: str) -> None:
    assert file_name(wanted) == name and file_name(name) == name


def test_a_long_name_is_cut_between_characters() -> None:
    for one in ("n", "é", "日", "😀"):
        found = file_name(one * 250)
        assert MOST_BYTES - 4 < len(found.encode()) <= MOST_BYTES and set(found) == {one}


def test_the_recipes_name_comes_before_the_folders_and_a_change_is_said(tmp_path: Path) -> None:
    assert exported_name("mug", tmp_path / "run") == "mug" and exported_name(None, tmp_path / "run") == "run"
    assert renamed("mug", tmp_path) == "" and renamed(None, tmp_path / "run") == ""
    assert "'x'" in renamed(None, tmp_path / "-x") and "'-x'" in renamed(None, tmp_path / "-x")
