"""Names that cannot be, links to themselves, pipes and devices where a file or folder is meant: an error, in words."""

import os
from pathlib import Path

import pytest
from support.hostile import attempt

PATHS = {
    "a name of 300 letters": "a" * 300,
    "a path of 5,000 letters": "/".join(["b" * 99] * 50),
    "a name with NUL": "a\x00b",
    "a link to itself": "loop",
    "a link to nothing": "nowhere",
    "a pipe that nobody writes": "pipe",
    "a device without an end": "/dev/zero",
    "a folder": "photos",
    "an empty file": "empty",
    "a name that is no UTF-8": "caf\udce9",
}
COMMANDS: dict[str, list[str]] = {
    # what takes a path: the command, PATH in its place
    "check": ["check", "PATH"],
    "prepare": ["prepare", "PATH", "--out", "new"],
    "prepare --out": ["prepare", "photos", "--out", "PATH"],
    "caption": ["caption", "PATH", "--vocabulary", "pocket"],
    "caption --vocabulary": ["caption", "bare", "--vocabulary", "PATH"],
    "plan": ["plan", "PATH"],
    "plan --set base": ["plan", "mine.toml", "--set", "base=PATH"],
    "plan --set data.path": ["plan", "mine.toml", "--set", "data.path=PATH"],
    "inspect": ["inspect", "PATH"],
    "verify": ["verify", "PATH", "--base", "pocket"],
    "verify --base": ["verify", "mug.safetensors", "--base", "PATH"],
    "export": ["export", "--from", "PATH"],
    "evaluate": ["evaluate", "PATH"],
    "compare": ["compare", "PATH", "--prompt", "a star"],
    "report": ["report", "PATH"],
    "status": ["status", "PATH"],
    "sample --base": ["sample", "--base", "PATH", "--prompt", "x", "--out", "new"],
    "sample --adapter": ["sample", "--base", "pocket", "--adapter", "PATH", "--prompt", "x", "--out", "new"],
    "sample --prompts": ["sample", "--base", "pocket", "--prompts", "PATH", "--out", "new"],
    "recipes copy": ["recipes", "copy", "PATH", "copied.toml"],
}
SOUND = {
    ("check", "a folder"), ("prepare", "a folder"), ("plan --set data.path", "a folder"), ("caption", "a folder"),
    ("prepare --out", "a name that is no UTF-8"), ("prepare --out", "a link to nothing"),
    ("recipes copy", "an empty file"),
}  # fmt: skip
"""which are as they should be"""


@pytest.mark.parametrize("what", COMMANDS)
def test_a_path_that_cannot_be_is_an_error_in_words(what: str, place: Path) -> None:
    (place / "loop").symlink_to("loop")
    (place / "nowhere").symlink_to("not there")
    os.mkfifo(place / "pipe")
    (place / "empty").touch()
    wrong = []
    for name, path in PATHS.items():
        found = attempt([word.replace("PATH", path) for word in COMMANDS[what]], place)
        worded = "error:" in found.err or "Usage" in found.err
        if found.traceback or (found.code, worded) != (2, True):
            if (what, name) not in SOUND or found.code != 0:
                wrong.append((name, found.code, found.text[-300:]))
    assert not wrong
