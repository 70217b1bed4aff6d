"""Licences and captions that vary at the command line: what `prepare` and `check` are told and what they say."""

import json
from pathlib import Path

import pytest
from support.command import said
from support.nasty_folder import picture

from finetune.data.dataset import read_dataset

WORDS = ("--trigger", "sks", "--class-word", "mug")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for n in range(4):
        picture(n).save(root / f"{n}.png")
        (root / f"{n}.txt").write_text(f"a mug, number {n}\na mug\nof one's own")
    (root / "0.license").write_text("CC BY 4.0")
    (root / "1.license").write_text("CC BY-NC 4.0")
    (root / "2.license").write_text("SPDX-License-Identifier: CC0-1.0\nSPDX-FileCopyrightText: Bob <bob@example.org>")
    return root


def test_prepare_takes_the_licences_asked_for_and_check_tells_the_sums(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "mug"
    code, told, _ = said(
        capsys, "prepare", photos, "--out", out, *WORDS, "--require-license", "cc0,CC-BY-*", "--require-license",
        "LicenseRef-Acme", "--author", "Ada", "--caption-lines", "joined",
    )  # fmt: skip
    assert (
        code == 0
        and "rejected 1.png: licence: its licence is CC-BY-NC-4.0; required is CC0-1.0 or CC-BY-* or Acme" in told
    )
    assert "the licence 'CC BY 4.0' is read as CC-BY-4.0: 0.png" in told and "seen 4 = used 2 + rejected 2" in told
    assert "licences: 1 picture CC-BY-4.0 (Ada), 1 CC0-1.0 (Bob)" in told
    assert read_dataset(out).examples[0].captions == ("a sks mug, number 0 a mug of one's own",)
    code, told, _ = said(capsys, "check", out)
    assert code == 0 and "licences: 1 picture CC-BY-4.0 (Ada), 1 CC0-1.0 (Bob)" in told and "bob@" not in told
    code, told, _ = said(capsys, "check", out, "--json")
    found = json.loads(told)
    assert found["licenses"] == [
        {"license": "CC-BY-4.0", "pictures": 1, "authors": ["Ada"]},
        {"license": "CC0-1.0", "pictures": 1, "authors": ["Bob <bob@example.org>"]},
    ]
    assert next((row["license"], row["author"]) for row in found["images"]) == ("CC-BY-4.0", "Ada")


def test_a_licence_that_is_none_is_said_in_the_words_of_the_command(photos: Path, tmp_path: Path, capsys) -> None:
    code, _, error = said(capsys, "prepare", photos, "--out", tmp_path / "mug", *WORDS, "--require-license", "CC-BI")
    assert code == 2 and "--require-license: 'CC-BI' is not a known licence" in error and "CC-BY-4.0" in error


def test_nothing_left_is_said_with_the_licences_that_were_there(photos: Path, tmp_path: Path, capsys) -> None:
    code, _, error = said(capsys, "prepare", photos, "--out", tmp_path / "mug", *WORDS, "--require-license", "MIT")
    assert code == 2 and "no images in" in error and "3.png: licence: it has no licence; required is MIT" in error


def test_check_lists_every_caption_and_a_page_has_them_too(photos: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "page.html"
    code, told, _ = said(capsys, "check", photos, *WORDS, "--html", page)
    assert code == 0 and "a sks mug, number 0 (and 2 more captions)" in " ".join(told.split())
    assert "trigger 'sks' in 12 of 12 captions" in told
    html = page.read_text()
    assert html.count("3 wordings, shown in turn") == 4 and "1 CC0-1.0 (Bob)" in html and "bob@example" not in html
    code, told, _ = said(capsys, "check", photos, *WORDS, "--json", "--base", "pocket")
    [first, *_] = json.loads(told)["images"]
    assert first["wordings"] == ["a sks mug, number 0", "a sks mug", "sks, of one's own"] and first["tokens"] > 4
    code, told, _ = said(capsys, "check", photos, *WORDS, "--caption-lines", "joined", "--json")
    assert json.loads(told)["images"][0]["wordings"] == ["a sks mug, number 0 a mug of one's own"]


def test_prepare_takes_captions_of_an_earlier_dataset_and_says_which(photos: Path, tmp_path: Path, capsys) -> None:
    old = tmp_path / "old"
    assert said(capsys, "prepare", photos, "--out", old, *WORDS)[0] == 0
    table = old / "metadata.jsonl"
    table.write_text(table.read_text().replace("a sks mug, number 0", "a sks mug, corrected"))
    code, told, _ = said(capsys, "prepare", photos, "--out", tmp_path / "new", *WORDS, "--captions-of", old)
    assert code == 0 and "4 of 4 captions were taken over from old" in told
    assert "1 of these replace a different caption in the source: 0.png" in told
    assert [e.captions for e in read_dataset(tmp_path / "new").examples] == [
        e.captions for e in read_dataset(old).examples
    ]
