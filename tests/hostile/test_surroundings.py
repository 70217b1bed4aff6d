"""A machine that gives little: full disks, closed or old terminals, few open files, folders that may not be written."""

import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hostile import command, forked

Limit = Callable[[], None]
PREPARE = ["prepare", "photos", "--out", "new", "--trigger", "sks"]
EXPORT = ["export", "--from", "mug.safetensors", "--out", "new.safetensors"]
COPY = ["recipes", "copy", "sd15-product", "new.toml"]
CHECK = ["check", "photos", "--trigger", "sks"]
PAGE = [*CHECK, "--html", "new.html"]
REPORT = ["report", "run"]
SAMPLE = ["sample", "--base", "pocket", "--prompt", "a cup", "--steps", "1", "--out", "new"]
TRAIN = ["train", "mine.toml", "--out", "new", "--set", "evaluate.count=0", "--set", "sample.steps=1"]
WRITERS = {"prepare": PREPARE, "export": EXPORT, "recipes copy": COPY, "check --html": PAGE, "report": REPORT,
           "sample": SAMPLE, "train": TRAIN}  # fmt: skip


def small_files() -> None:
    """As a full disk does, in the middle of a file. Python ignores the signal."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def few_files() -> None:
    """Two more than are open."""
    open_now = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 2, open_now + 2))


def no_folder() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


def nobody() -> None:
    """A user who may read all of it and write none."""
    for one in (".", "run", "photos"):
        os.chmod(one, 0o555)
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def cache_is(path: str) -> Limit:
    return lambda: os.environ.update(FINETUNE_CACHE=path)


def terminal(encoding: str) -> Limit:
    def limit() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=encoding, errors="strict")  # type: ignore[union-attr]

    return limit


def without(number: int) -> Limit:
    """As Python finds it after `>&-`."""

    def limit() -> None:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)

    return limit


def run_of(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run/run.json").write_text('{"outcome": "interrupted", "steps": 4}')
    (place / "run/events.jsonl").write_text('{"event": "stage", "time": 1.0, "name": "training", "total": 4}\n')


def tried(arguments: list[str], place: Path, limit: Limit) -> tuple[int, str]:
    """(exit code, all that was said); no traceback."""

    def work() -> None:
        limit()
        command(arguments)

    found = forked(work, place)
    assert not found.traceback, found.err
    return found.code, found.text


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_that_cannot_grow_is_told_and_leaves_no_half(what: str, place: Path) -> None:
    run_of(place)
    before = {path.name for path in place.iterdir()}

    def limit() -> None:
        full = os.open("/dev/null", os.O_WRONLY)
        os.dup2(full, 1)  # what is printed is a file here, too
        small_files()

    code, text = tried(WRITERS[what], place, limit)
    assert code == 2, text
    left = {path.name for path in place.iterdir()} - before
    assert left <= {"new"} or what == "report", left
    assert not list((place / "new").glob("*.png")) and not list((place / "new").glob("**/*.safetensors"))
    assert not list((place / "run").glob(".*.part"))


@pytest.mark.parametrize("what", WRITERS)
def test_a_folder_that_may_not_be_written_is_told(what: str, place: Path) -> None:
    run_of(place)
    code, text = tried(WRITERS[what], place, nobody)
    for one in (".", "run", "photos"):
        os.chmod(place / one, 0o755)
    assert code == 2 and re.search("cannot (write|read)|Permission denied", text) and "try:" in text, text
    assert not list(place.glob("new*"))


@pytest.mark.parametrize("what", [*WRITERS, "check"])
def test_few_open_files_are_told(what: str, place: Path) -> None:
    run_of(place)
    code, text = tried({**WRITERS, "check": CHECK}[what], place, few_files)
    assert code in (0, 2) and (code == 0 or "error:" in text), text


@pytest.mark.parametrize("what", [*WRITERS, "check", "plan", "status", "doctor", "help"])
def test_a_folder_that_is_gone_is_told(what: str, place: Path) -> None:
    more = {"check": CHECK, "plan": ["plan", "mine.toml"], "status": ["status", "."], "doctor": ["doctor"],
            "help": ["--help"]}  # fmt: skip
    code, text = tried({**WRITERS, **more}[what], place, no_folder)
    assert code in (0, 2) and (code == 0 or "error:" in text), text


CACHES = {"a device": "/dev/null", "a file": "mine.toml/cache", "the kernel's": "/proc/self", "a loop": "loop/cache",
          "a name of 300 letters": "a" * 300}  # fmt: skip


@pytest.mark.parametrize("what", CACHES)
def test_a_cache_that_cannot_be_is_told(what: str, place: Path) -> None:
    (place / "loop").symlink_to("loop")
    code, text = tried(TRAIN, place, cache_is(CACHES[what]))
    assert code == 2 and "cache" in text and "FINETUNE_CACHE" in text, text
    code, text = tried(["cache"], place, cache_is(CACHES[what]))
    assert code in (0, 2), text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16", "latin-1"])
def test_an_old_terminal_shows_what_it_can(encoding: str, place: Path) -> None:
    for n, name in enumerate(("caf\u00e9 \u4e2d\u6587 \U0001f600.png", "\u202egnp.png")):
        os.rename(place / f"photos/photo {n}.png", place / "photos" / name)
        os.rename(place / f"photos/photo {n}.txt", (place / "photos" / name).with_suffix(".txt"))
    (place / "photos/caf\u00e9 \u4e2d\u6587 \U0001f600.txt").write_text("a sks \u00e9l\u00e9phant \U0001f418")
    for arguments in (
        CHECK,
        ["plan", "mine.toml"],
        ["plan", "no \u4e2d.toml"],
        ["--help"],
        ["check", "photos", "--json"],
    ):
        code, text = tried(arguments, place, terminal(encoding))
        assert code in (0, 2) and text, (arguments, text)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stream_that_is_closed_costs_nothing(number: int, place: Path) -> None:
    for arguments in (PREPARE, ["check", "new"], ["plan", "no.toml"]):
        code, _ = tried(arguments, place, without(number))
        assert code == (2 if "no.toml" in arguments else 0), arguments
    assert (place / "new/metadata.jsonl").exists()


INTO_A_DEVICE = [
    [*PREPARE[:3], "/dev/full", *PREPARE[4:]],
    [*CHECK, "--html", "/dev/full"],
    [*EXPORT[:4], "/dev/full"],
    [*COPY[:3], "/dev/full"],
]


@pytest.mark.parametrize("arguments", INTO_A_DEVICE, ids=lambda arguments: arguments[0])
def test_a_device_is_no_place_for_a_result(arguments: list[str], place: Path) -> None:
    code, text = tried(arguments, place, lambda: None)
    assert code == 2 and "/dev/full" in text and "try:" in text, text
    assert os.path.exists("/dev/full")


def test_a_token_is_neither_shown_nor_written(place: Path) -> None:
    secret = "hf_ThisIsNobodysToken"

    def tokens() -> None:
        os.environ.update(HF_TOKEN=secret, WANDB_API_KEY=secret, HUGGING_FACE_HUB_TOKEN=secret)

    for arguments in (TRAIN, ["doctor"], ["plan", "mine.toml", "--json"], ["status", "new"], ["inspect", "none.ckpt"]):
        _, text = tried(arguments, place, tokens)
        assert text and secret not in text, arguments
    written = [path for path in place.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert (place / "new/run.json").exists() and not written
