"""Texts for others: what is cleaned passes the gate, however it is written down, and plain texts stay as they are."""

import json
import random
import socket
from pathlib import Path

import pytest

from finetune.reporting.public import LEFT_OUT, MOST_CHARACTERS, leak, public

PIECES = (
    "/home/anna/mug.png",
    "~/x",
    "C:\\Users\\Anna Smith\\b.png",
    "\\\\nas\\share",
    "file:///x",
    "/mnt/d/e f/g.png",
    "/a/b",
    "\\w",
    "/work",
    "mug",
    " ",
    "\n",
    "\t",
    '"',
    "'",
    "=",
    ":",
    "(",
    "[",
    ",",
    "/",
    "\\",
    "…",
    "é",
    "\x00",
    "\u202e",
    "\ud800",
    "\u2028",
    "and/or",
    "https://x.org/a/b",
    "/homework",
    str(Path.home()),
)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_cleaned_passes_the_gate_as_it_is_and_as_json(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        text = "".join(chance.choices(PIECES, k=chance.randint(0, 12)))
        for most in (MOST_CHARACTERS, chance.randint(1, 30)):
            found = public(text, most)
            for written in (found.text, json.dumps({"x": found.text}, ensure_ascii=False)):
                assert not leak(written), (text, found, written)
            assert len(found.text) <= most and found.text.isprintable(), (text, found)
            assert public(found.text, most).text == found.text, (text, found, "once is enough")


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a mug from /home/anna/photos/mug 1.png on a table", f"a mug from {LEFT_OUT} 1.png on a table"),
        ("see C:\\Users\\Anna Smith\\mug.png", f"see {LEFT_OUT}"),
        ("/home/anna/my photos/mug.png", LEFT_OUT),
        ('say "~/x" to it', f'say "{LEFT_OUT}" to it'),
        ("a mug\n  on a\ttable ", "a mug on a table"),
        ("a\x00 b\x1b[31m\u202ec\ud800", "a b[31mc"),
    ],
)
def test_paths_and_what_is_no_text_are_left_out(text: str, shown: str) -> None:
    found = public(text)
    assert found.text == shown and bool(found.removed) == (shown != " ".join(text.split()))


@pytest.mark.parametrize(
    "fine", ["a 1/2 mug", "and/or w/o lid", "https://x.org/a/b", "CC-BY 4.0", "mug (v: 2)", "é…日本"]
)
def test_plain_texts_stay_as_they_are(fine: str) -> None:
    assert public(fine) == (fine, "")


def test_a_long_text_is_cut_and_says_so() -> None:
    found = public("mug " * 10_000)
    assert len(found.text) == MOST_CHARACTERS and found.text.endswith(LEFT_OUT) and "first 2,000" in found.removed
    assert public("x" * MOST_CHARACTERS).removed == ""


def test_a_name_of_this_machine_is_a_leak_unless_a_person_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "annas-laptop")
    assert "annas-laptop" in leak("built on annas-laptop") and not leak("a mug", "annas-laptop")
    assert not leak("a mug of annas-laptop", written="annas-laptop") and not leak("annas-laptops")
