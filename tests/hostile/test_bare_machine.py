"""A machine with less than usual: a user without a name, without a home, or with one that nothing can be written to."""

import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hostile import attempt

from finetune import caches
from finetune.errors import RunError
from finetune.files.metadata import refuse_local


@pytest.fixture
def nameless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As in a container that runs as a number: no HOME, no USER, no line in passwd. Gives the temporary folder."""
    for variable in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "FINETUNE_CACHE"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    caches._temporary_root.cache_clear()
    yield tmp_path / "tmp"
    caches._temporary_root.cache_clear()


@pytest.mark.parametrize("home", [None, "/dev/null", "/dev/null/nobody"])
@pytest.mark.parametrize("command", [["cache", "info"], ["cache", "clear"], ["doctor"], ["plan", "mine.toml"]])
def test_commands_work_without_a_home(
    place: Path, nameless: Path, command: list[str], home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home:
        monkeypatch.setenv("HOME", home)
    found = attempt(command, place)
    assert found.code == 0 and not found.traceback, found.text
    if command[0] == "cache":
        assert f"{nameless}/finetune-{os.geteuid()}:" in found.out


def test_a_run_is_trained_exported_and_verified_without_a_home(place: Path, nameless: Path) -> None:
    found = attempt(["train", "mine.toml", "--out", "run", "--set", "sample.steps=1", "--set", "train.steps=1"], place)
    assert found.code in (0, 4) and not found.traceback, found.text  # one step teaches nothing
    assert "verified: run.safetensors" in found.text and (place / "run" / "adapter" / "run.safetensors").is_file()
    assert not (place / "~").exists()


def test_nothing_is_published_of_a_home_that_is_not_there(nameless: Path) -> None:
    refuse_local({"title": "mug"})


def test_a_cache_in_the_temporary_folder_is_the_users_alone(nameless: Path) -> None:
    root = caches.default_root()
    assert root == nameless / f"finetune-{os.geteuid()}" == caches.default_root()
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["link", "open", "file"])
def test_a_folder_that_others_may_write_is_not_taken_for_the_cache(nameless: Path, planted: str) -> None:
    theirs = nameless / f"finetune-{os.geteuid()}"
    if planted == "link":
        (nameless / "elsewhere").mkdir()
        theirs.symlink_to(nameless / "elsewhere")
    elif planted == "open":
        theirs.mkdir()
        theirs.chmod(0o777)
    else:
        theirs.touch()
    root = caches.default_root()
    assert root != theirs and root.parent == nameless and root.stat().st_mode & 0o777 == 0o700


def test_no_temporary_folder_either_is_an_error_with_the_variable_to_set(
    nameless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(nameless / "gone"))
    with pytest.raises(RunError, match="no folder for the cache") as raised:
        caches.default_root()
    assert "FINETUNE_CACHE" in raised.value.hint


def test_an_empty_variable_names_no_folder(nameless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(nameless))
    assert caches.default_root() == nameless / ".cache" / "finetune"
