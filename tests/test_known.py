"""What is worked out once is given again for equal inputs, versions and program, and only for these."""

from pathlib import Path
from typing import Any

import pytest

from finetune import known as kept
from finetune.known import clear_known, known


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Work:
    def __init__(self, value: Any = 7) -> None:
        self.value, self.done = value, 0

    def __call__(self) -> Any:
        self.done += 1
        return self.value


@pytest.mark.parametrize("value", [7, None, [1, "two"], {"a": 1.5}])
def test_it_is_worked_out_once(value):
    work = Work(value)
    assert [known("count", {"of": 1}, ["torch"], work) for _ in range(3)] == [value] * 3 and work.done == 1


def test_another_question_other_inputs_another_library_or_another_program_are_worked_out(monkeypatch):
    work = Work()
    known("count", [1], ["torch"], work)
    known("other", [1], ["torch"], work)
    known("count", [2], ["torch"], work)
    known("count", [1], ["numpy"], work)
    assert work.done == 4
    monkeypatch.setattr(kept, "version", lambda name: "0.0.1")
    known("count", [1], ["torch"], work)
    assert work.done == 5
    monkeypatch.setattr(kept, "_program", lambda: "changed")
    known("count", [1], ["torch"], work)
    assert work.done == 6


@pytest.mark.parametrize("damage", [b"", b"half", b"[7]", b"0" * 64 + b"\n[8]"], ids=["empty", "half", "bare", "other"])
def test_what_is_damaged_is_worked_out_again(damage, root):
    work = Work()
    known("count", [1], [], work)
    [file] = (root / kept.KNOWN_FOLDER).iterdir()
    file.write_bytes(damage)
    assert known("count", [1], [], work) == 7 and work.done == 2
    assert known("count", [1], [], work) == 7 and work.done == 2, "not kept again"


def test_where_nothing_can_be_written_it_is_worked_out_each_time(root):
    root.write_text("a file")
    work = Work()
    assert [known("count", [1], [], work) for _ in range(2)] == [7, 7] and work.done == 2


def test_an_error_is_not_kept():
    def fails() -> None:
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            known("count", [1], [], fails)


def test_clearing_removes_what_is_kept_and_nothing_else(root):
    work = Work()
    known("count", [1], [], work)
    (root / "mine.json").write_text("{}")
    clear_known(root)
    assert [path.name for path in root.iterdir()] == ["mine.json"]
    assert known("count", [1], [], work) == 7 and work.done == 2
    clear_known(root / "nowhere")


def test_a_changed_file_of_the_package_is_another_program(monkeypatch, tmp_path):
    (tmp_path / "one.py").write_text("a")
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "known.py"))
    program = kept._program.__wrapped__
    before = program()
    assert program() == before
    (tmp_path / "one.py").write_text("ab")
    assert program() != before
