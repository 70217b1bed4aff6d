"""A picture with several captions: each has the trigger, is checked, counted and shown, raw and prepared."""

import json
from pathlib import Path

import pytest
from support.nasty_folder import picture

from finetune.data.audit import Audit, audit
from finetune.data.dataset import read_dataset
from finetune.data.prepare import prepare
from finetune.errors import DataError

WORDS = {"trigger": "sks", "class_word": "mug"}


def folder(root: Path, *captions: str) -> Path:
    root.mkdir(parents=True)
    for n, caption in enumerate(captions):
        picture(n).save(root / f"{n}.png")
        (root / f"{n}.txt").write_text(caption)
    return root


def notes(report: Audit) -> list[str]:
    return [f"{note.file}: {note.text}" for note in report.notes]


def test_the_lines_of_a_caption_file_are_captions_that_take_turns(tmp_path: Path) -> None:
    """As in kohya's, OneTrainer's and SimpleTuner's folders."""
    root = folder(tmp_path / "photos", "a mug, side view\n\n a  mug from above\na mug, side view\n", "a mug on grass")
    report = audit(root, **WORDS)
    assert [e.captions for e in report.used] == [
        ("a sks mug, side view", "a sks mug from above"),
        ("a sks mug on grass",),
    ]
    assert [e.wordings for e in report.used] == [("a sks mug, side view", "a sks mug from above"), ()]
    assert "0.png: the 3 lines of its caption file are 3 captions, shown in turn" in notes(report)
    assert report.coverage == (3, 3)


def test_lines_that_read_like_one_wrapped_text_are_pointed_out(tmp_path: Path) -> None:
    long = "a mug with a very long description that was wrapped by an editor at\nsome column, and goes on in lower case"
    [note] = [n for n in notes(audit(folder(tmp_path / "a", long, "a mug here"), **WORDS)) if "lines" in n]
    assert "they read like one text: set `caption_lines` to joined" in note
    joined = audit(tmp_path / "a", **WORDS, caption_lines="joined")
    assert joined.used[0].captions == (long.replace("a mug", "a sks mug").replace("\n", " "),)


def test_wildcards_of_captions_are_written_out_and_words_are_put_in(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "photos", "a {red|blue} {class_word}, {trigger}", "a mug {in|on|under|by} {a|b|c|d} {e|f|g}"
    )
    report = audit(root, **WORDS)
    assert report.used[0].captions == ("a red mug, sks", "a blue mug, sks")
    assert len(report.used[1].captions) == 32 and len(set(report.used[1].captions)) == 32
    assert "1.png: 32 of the 48 combinations of its wildcards are used" in notes(report)
    assert not [problem for problem in audit(root, trigger="sks").problems if "{trigger}" in problem]
    [lacks] = [problem for problem in audit(root, trigger="sks").problems if "class_word" in problem]
    assert lacks == "captions contain {class_word}, but no `class_word` is declared: 0.png"


def test_half_a_wildcard_is_a_problem_that_names_the_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "a {red|blue mug", "a {2$$red|blue} mug", "a mug")
    assert [problem.rpartition(": ")[2] for problem in audit(root, **WORDS).problems] == ["0.png", "1.png"]


def test_a_column_of_captions_counts_and_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    rows = [{"file_name": "0.png", "text": "a mug", "captions": ["a cup", "a mug", ""]},
            {"file_name": "1.png", "captions": ["a {red|blue} mug", "a pot"]}]  # fmt: skip
    for n in range(2):
        picture(n).save(root / f"{n}.png")
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = audit(root, **WORDS)
    assert [e.captions for e in report.used] == [
        ("a sks mug", "sks, a cup"),
        ("a red sks mug", "a blue sks mug", "sks, a pot"),
    ]
    assert not report.problems and report.coverage == (5, 5)


def test_a_prepared_dataset_holds_them_final_and_reads_them_as_they_are(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "a mug, {red|blue}\nold mug", "a mug on grass")
    raw, made = audit(root, **WORDS), prepare(root, tmp_path / "out", **WORDS)
    again = read_dataset(tmp_path / "out")
    for seen in (raw.used, made.examples, again.examples):
        assert [e.captions for e in seen] == [
            ("a sks mug, red", "a sks mug, blue", "old sks mug"),
            ("a sks mug on grass",),
        ]
    assert made.fingerprint == again.fingerprint and made.coverage == (4, 4)
    twice = prepare(tmp_path / "out", tmp_path / "twice")
    assert [e.captions for e in twice.examples] == [e.captions for e in made.examples]
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    rows[0]["captions"][1] = "a pot"
    (tmp_path / "out/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = read_dataset(tmp_path / "out")
    assert changed.fingerprint != made.fingerprint and changed.coverage == (3, 4)
    said = notes(audit(tmp_path / "out"))
    assert "images/0.png: one of its further captions lacks the trigger 'sks'" in said


def test_captions_of_an_earlier_dataset_are_taken_for_the_same_pictures(tmp_path: Path) -> None:
    """By what they hold: names may change, and pictures that were converted are known by their pixels."""
    root = folder(tmp_path / "photos", "", "", "a mug, third", "a mug, fourth")
    picture(1).rotate(180).convert("CMYK").save(root / "1.tif")
    (root / "1.png").unlink()
    made = prepare(root, tmp_path / "old", **WORDS, allow_uncaptioned=True)
    rows = [json.loads(line) for line in (tmp_path / "old/metadata.jsonl").read_text().splitlines()]
    texts = [("a sks mug by a model", "model"), ("a sks mug, corrected", "written"), (rows[2]["text"], "written")]
    for row, (text, by) in zip(rows, texts, strict=False):
        row |= {"text": text, "caption_by": by}
    rows[1]["captions"] = ["another sks mug"]
    rows[2]["text"] = "a sks mug, improved"
    (tmp_path / "old/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "0.png").rename(root / "renamed.png"), (root / "0.txt").unlink()
    (root / "3.png").unlink(), (root / "3.txt").unlink()
    picture(8).save(root / "8.png"), (root / "8.txt").write_text("a mug, new")
    assert len(made.examples) == 4
    new = prepare(root, tmp_path / "new", trigger="zwx", class_word="mug", captions_of=tmp_path / "old")
    found = {e.name: (e.captions, e.origin) for e in new.examples}
    assert found == {
        "images/1.png": (("a zwx mug, corrected", "another zwx mug"), "written"),
        "images/2.png": (("a zwx mug, improved",), "written"),
        "images/8.png": (("a zwx mug, new",), "written"),
        "images/renamed.png": (("a zwx mug by a model",), "model"),
    }
    said = [note.text for note in _carried(root, tmp_path / "old")]
    assert "3 of 4 captions were taken over from old" in said
    assert "1 of these replace a different caption in the source: 2.png" in said
    assert "1 pictures of old are not in the source: images/3.png" in said


def _carried(root: Path, old: Path) -> list:  # type: ignore[type-arg]
    from finetune.data.audit import audit_folder
    from finetune.data.folder import Rules
    from finetune.data.text.captions import clean_words

    return list(audit_folder(root, clean_words("sks", "mug", None), Rules(captions_of=old)).notes)


def test_an_earlier_dataset_that_is_broken_or_gone_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "a mug, first", "a mug, second")
    with pytest.raises(DataError, match="no folder"):
        prepare(root, tmp_path / "new", captions_of=tmp_path / "gone", **WORDS)
    prepare(root, tmp_path / "old", **WORDS)
    (tmp_path / "old/metadata.jsonl").write_text("{")
    with pytest.raises(DataError, match="old: "):
        prepare(root, tmp_path / "new", captions_of=tmp_path / "old", **WORDS)
    assert not (tmp_path / "new").exists()
