"""Advice is followed as it is printed: what `check` and `prepare` say to try makes things better, captions included."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.command import said
from support.nasty_folder import encoded, picture

WORDS = ("--trigger", "sks", "--class-word", "mug")
OPTIONS = (*WORDS, "--folder-names", "plain", "--captions-from", "none", "--kind", "product")
WRITTEN = [f"a mug, view {i}" for i in range(4)]


class Folder(NamedTuple):
    """A folder that does not pass, and what a person does who reads what is printed; nothing: the command alone."""

    made: Callable[[Path], object]
    by_hand: Callable[[Path], object] | None = None
    words: tuple[str, ...] = WORDS
    captions: bool = True
    """It has captions of its own, which must be those that are prepared."""


def nothing(root: Path) -> None:
    """Pictures only."""


def sidecars(suffix: str, text: str = "{}") -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for i, one in enumerate(WRITTEN):
            (root / f"{i}{suffix}").write_text(text.format(one))

    return write


def table(name: str, header: str, row: str = "{},{}") -> Callable[[Path], None]:
    def write(root: Path) -> None:
        rows = [row.format(f"{i}.jpg", f'"{one}"') for i, one in enumerate(WRITTEN)]
        (root / name).write_text("\n".join([header, *rows]))

    return write


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def rename(root: Path) -> None:
        for file in list(root.rglob(f"*{old}")):
            file.rename(root / file.name.replace(old, new))

    return rename


def edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        for file in root.iterdir():
            if file.suffix in (".txt", ".csv", ".json"):
                file.write_text(file.read_text().replace(old, new))

    return edit


def broken(root: Path) -> None:
    sidecars(".txt")(root)
    (root / "broken.jpg").write_bytes(b"")
    (root / "notes.pdf").write_bytes(b"%PDF-1.7 ...")


def elsewhere(root: Path) -> None:
    (root / "captions").mkdir()
    for i, one in enumerate(WRITTEN):
        (root / "captions" / f"{i}.txt").write_text(one)


def half(root: Path) -> None:
    sidecars(".txt")(root)
    (root / "3.txt").unlink()


def twice(root: Path) -> None:
    sidecars(".txt")(root)
    (root / "0.caption").write_text("something else")


def regularised(root: Path) -> None:
    for name in ("10_sks mug", "reg/1_mug"):
        (root / name).mkdir(parents=True)
        (root / name / "a.jpg").write_bytes(encoded(picture(len(name)), "JPEG"))
    sidecars(".txt")(root)


def moved(root: Path) -> None:
    (root / "reg").rename(root.parent / "reg")


FOLDERS = {
    "no words": Folder(nothing, words=(), captions=False),
    "broken files": Folder(broken),
    "broken files, no captions": Folder(lambda root: (root / "broken.jpg").write_bytes(b""), captions=False),
    "options of its own": Folder(twice, lambda root: (root / "0.caption").unlink(),
                                     OPTIONS),
    "no class word": Folder(nothing, words=("--trigger", "sks"), captions=False),
    "captions elsewhere": Folder(elsewhere, renamed(".txt", ".txt")),
    "another suffix": Folder(sidecars(".tags"), renamed(".tags", ".txt")),
    "unknown column": Folder(table("metadata.csv", "file_name,beschriftung"), edited("beschriftung", "text")),
    "unknown column elsewhere": Folder(table("list.csv", "file_name,beschriftung"), edited("beschriftung", "text")),
    "unknown key": Folder(sidecars(".json", '{{"beschriftung": "{}"}}'), edited("beschriftung", "caption")),
    "several columns": Folder(table("metadata.csv", "file_name,prompt,description", "{},{},b c"),
                              edited("prompt", "text")),
    "no table": Folder(table("captions.txt", "", "{} is {}"), table("captions.txt", "file_name,text")),
    "half captioned": Folder(half, lambda root: (root / "3.txt").write_text(WRITTEN[3])),
    "two captions": Folder(twice, lambda root: (root / "0.caption").unlink()),
    "weighted words": Folder(sidecars(".txt", "({}:1.2)"), edited(":1.2)", "")),
    "an adapter": Folder(sidecars(".txt", "{} <lora:style:1>"), edited(" <lora:style:1>", "")),
    "trigger of ai-toolkit": Folder(sidecars(".txt", "{}, [trigger]"), words=()),
    "class images": Folder(regularised, moved),
}  # fmt: skip


def checked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict, str]:
    """(exit code, what `check` reports, what it says to try)"""
    code, out, err = said(capsys, *map(str, arguments), "--json")
    error = json.loads(err.splitlines()[-1]) if err.strip() else {}
    return code, json.loads(out) if out.strip() else {}, str(error)


def faults(report: dict) -> int:
    return len(report.get("problems", ())) + len(report.get("rejected", ()))


def tried(printed: str) -> list[str]:
    """The arguments of the command in an advice; none where it has none."""
    found = re.findall(r"finetune ((?:check|prepare|caption) [^\n]*)", printed)
    return shlex.split(found[-1]) if found else []


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_check_says_to_try_leaves_fewer_problems_and_the_captions(
    kind: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = FOLDERS[kind]
    folder.made(photos)
    code, before, _ = checked(capsys, "check", photos, *folder.words)
    assert code == 2 and faults(before)
    code, _, printed = said(capsys, "check", str(photos), *folder.words)
    command = tried(printed)
    assert code == 2 and "try: " in printed and command, printed
    assert set(folder.words) <= set(command), "what was asked for is asked for again"
    if folder.by_hand:
        folder.by_hand(photos)
    out = tmp_path / "out"
    command = [str(out) if word == "DIR" else word for word in command]
    code, _, printed = said(capsys, *command)
    if command[0] == "check":
        assert code == 0, printed
    else:
        assert code == 0 and command[0] == "prepare", printed
        assert checked(capsys, "check", out)[0] == 0
    if folder.captions:
        words = WORDS if command[0] == "check" else ()
        _, after, _ = checked(capsys, "check", photos if words else out, *words)
        texts = [image["caption"] for image in after["images"]]
        assert all(any(view in text for text in texts) for view in ("view 0", "view 3")), texts


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_prepare_says_to_try_leads_to_a_dataset_with_the_captions(
    kind: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = FOLDERS[kind], tmp_path / "out"
    folder.made(photos)
    order = ("prepare", str(photos), "--out", str(out))
    code, _, printed = said(capsys, *order, *folder.words)
    if code == 0:  # what is rejected does not stop it
        assert kind.startswith("broken files") and checked(capsys, "check", out)[0] == 0
        return
    command = tried(printed)
    assert code == 2 and "try: " in printed and not out.exists() and command[0] == "check", printed
    if folder.by_hand:
        folder.by_hand(photos)
    code, _, printed = said(capsys, *command)
    assert code == 0, printed
    options = [word for word in command[1:] if word != str(photos)]
    code, _, printed = said(capsys, *order, *options)
    assert code == 0, printed
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    if folder.captions:
        assert {row.get("caption_by", "written") for row in rows} <= {"written", "folder"}
        assert sum("view" in row["text"] for row in rows) == 4
