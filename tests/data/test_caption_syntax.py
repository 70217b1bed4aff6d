"""Captions written of another program: what has a meaning here is taken over, the rest is named with what to write."""

import json
from pathlib import Path

import pytest

from finetune.data import dataset
from finetune.data.audit import audit
from finetune.data.prepare import prepare
from finetune.errors import DataError


def caption(root: Path, text: str) -> None:
    for i in range(4):
        (root / f"{i}.txt").write_text(f"{text}, view {i}")


def test_ai_toolkits_trigger_is_ours_and_is_said(photos: Path) -> None:
    caption(photos, "[trigger] on a table")
    found = audit(photos, trigger="sks")
    assert [e.caption for e in found.used] == [f"sks on a table, view {i}" for i in range(4)] and not found.problems
    assert "[trigger] is ai-toolkit's word for the trigger" in found.understood[0]
    assert not any("was added" in n.text for n in found.notes)
    assert any("no `trigger` is declared" in p for p in audit(photos).problems)


def test_escaped_brackets_are_brackets(photos: Path) -> None:
    caption(photos, r"a mug \(series\)")
    assert audit(photos).used[0].caption == "a mug (series), view 0"


@pytest.mark.parametrize(
    ("text", "written", "remedy"),
    [
        ("a (blue:1.4) mug", "(blue:1.4)", "write the words without brackets and number"),
        ("a mug <lora:style:0.8>", "<lora:style:0.8>", "leave it out"),
        ("a __colour__ mug", "__colour__", "write the word itself, or {one|another}"),
        ("a mug --w 512", "--w", "leave it out"),
        ("a {subject} mug", "{subject}", "write {trigger} in its place"),
        ("1girl ||| mug", "|||", "write a comma"),
    ],
)
def test_what_would_be_learnt_as_words_stops_prepare(
    text: str, written: str, remedy: str, photos: Path, tmp_path: Path
) -> None:
    caption(photos, text)
    found = audit(photos, trigger="sks", class_word="mug")
    [said] = found.problems
    assert written in said and "would be learnt as words (4 captions: 0.jpg, 1.jpg, 2.jpg and 1 more)" in said
    assert remedy in said
    with pytest.raises(DataError, match="of another program"):
        prepare(photos, tmp_path / "out", trigger="sks", class_word="mug")


def test_a_dataset_prepared_before_is_read_as_it_is_and_says_so(photos: Path, tmp_path: Path) -> None:
    prepare(photos, tmp_path / "out", trigger="sks", class_word="mug")
    table = tmp_path / "out" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text(
        "".join(json.dumps({**row, "text": f"sks mug (blue:1.2) {i}"}) + "\n" for i, row in enumerate(rows))
    )
    read = dataset.read_dataset(tmp_path / "out")
    assert read.examples[0].caption == "sks mug (blue:1.2) 0" and "(blue:1.2) is a weight" in read.understood[0]
