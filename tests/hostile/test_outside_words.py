"""Texts from outside reach the terminal harmless; a terminal that is closed, full or old costs no work."""

import json
import os
import re
from pathlib import Path

import pytest
from support.hostile import attempt

from finetune.reporting.markup import escape
from finetune.reporting.shown import harmless, harmless_json, only_colours

HOSTILE = {
    "colours": "\x1b[31mred", "a title": "\x1b]0;taken\x07", "a clipboard write": "\x1b]52;c;ZXZpbA==\x07",
    "another screen": "\x1b[?1049h", "the line before": "\x1b[1A\x1b[2Kok", "backspaces": "bad\b\b\bgood",
    "a carriage return": "bad\rgood", "right to left": "a\u202egpj.exe", "isolates": "\u2066x\u2069",
    "C1 controls": "\x9b31mred", "bell": "\x07", "a tag": "a\U000e0041b",
}  # fmt: skip
DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


@pytest.mark.parametrize("what", HOSTILE)
def test_each_is_written_out_and_nothing_else_changes(what: str) -> None:
    text = f"caf\u00e9 {HOSTILE[what]} \U0001f600\n"
    assert not DANGEROUS.search(harmless(text)) and harmless(text).startswith("caf\u00e9 ")
    assert harmless(text).endswith("\U0001f600\n") and not DANGEROUS.search(escape(text))
    told = json.dumps({text: [text]}, ensure_ascii=False, indent=1)
    assert json.loads(harmless_json(told)) == {text: [text]} and not DANGEROUS.search(harmless_json(told))


def test_colours_and_progress_bars_pass_and_other_codes_do_not() -> None:
    bar = "\x1b[1;32mdone\x1b[0m\r\x1b[2K\x1b[1A\x1b[?25l\x1b[?25h"
    assert only_colours(bar) == bar
    for what in ("a title", "a clipboard write", "another screen", "C1 controls", "bell"):
        assert only_colours(HOSTILE[what]) != HOSTILE[what], what


def commands(place: Path, text: str) -> list[list[str]]:
    """Commands that show a caption, a name, a title or a trigger; the text is put into each."""
    (place / "photos/photo 0.txt").write_text(f"a sks mug {text}", encoding="utf-8")
    name = text.replace("/", "").replace("\x00", "")
    os.rename(place / "photos/photo 1.png", place / f"photos/{name}.png")
    os.rename(place / "photos/photo 1.txt", place / f"photos/{name}.txt")
    (place / "run").mkdir()
    (place / "run/run.json").write_text(json.dumps({"outcome": "failed", "reason": text}))
    (place / "mine.toml").write_text(f"base = {json.dumps('pocket ' + text)}\n[data]\npath = 'photos'\n")
    return [
        ["check", "photos", "--trigger", "sks"], ["check", "photos", "--json"], ["prepare", "photos", "--out", "new"],
        ["plan", "mine.toml"], ["plan", f"no {text}.toml"], ["inspect", f"no {text}"], ["status", f"no {text}"],
        ["status", "run"], ["status", "run", "--follow"], ["status", "run", "--follow", "--json"],
        ["sample", "--base", "pocket", "--prompt", text + "{red|blue}", "--out", "o"],
    ]  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_no_command_sends_it_to_the_terminal(what: str, place: Path) -> None:
    for command in commands(place, HOSTILE[what]):
        found = attempt(command, place)
        assert not found.traceback, found.err
        assert not DANGEROUS.search(found.text), (command, found.text)


def test_a_reader_that_leaves_costs_no_traceback(place: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    found = attempt(["check", "photos", "--trigger", "sks"], place, out=writes)
    os.close(writes)
    assert (found.code, found.err) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_under_the_output_is_told(place: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    found = attempt(["check", "photos", "--trigger", "sks", "--json"], place, out=full)
    os.close(full)
    assert found.code == 2 and "No space left" in found.err and not found.traceback
