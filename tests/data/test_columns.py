"""Which column holds the captions is one rule, whether a table lies beside pictures, holds them, or is JSON of one."""

import json
from pathlib import Path

import pytest
from support.sources import picture_bytes

from finetune.data.audit import audit
from finetune.data.images.diagnose import diagnose
from finetune.data.images.signatures import IMAGE_SUFFIXES, SUFFIXES, format_of
from finetune.data.sources.columns import choose_columns
from finetune.data.text.columns import TableColumns, Unclear, find_columns
from finetune.data.text.sidecars import Owners, read_sidecars
from finetune.errors import DataError

PICTURE = {"bytes": b"\x89PNG", "path": None}
CHOICES: list[tuple[dict[str, str], str]] = [
    ({"text": "a b", "prompt": "c d"}, "text"),
    ({"Caption": "a b", "title": "c d"}, "Caption"),
    ({"prompt": "a b", "tags": "c d", "title": "e f"}, "prompt"),
    ({"Alt-Text": "a b", "tag_string": "c d"}, "Alt-Text"),
    ({"tags": "a b"}, "tags"),
    ({"text": "a b", "caption": "a b"}, "text"),
    ({"text": "a b", "caption": "c d"}, ""),
    ({"prompt": "a b", "description": "c d"}, ""),
    ({"tags": "a b", "title": "c d"}, ""),
]


@pytest.mark.parametrize("row, wanted", CHOICES, ids=lambda value: " ".join(value) if isinstance(value, dict) else "")
def test_three_readers_choose_the_same_column_or_none_of_them_does(
    row: dict[str, str], wanted: str, tmp_path: Path
) -> None:
    """empty: two say different things, and each reader asks."""
    beside = find_columns([{"file_name": "a.png", **row}], lambda name: name == "a.png")
    (tmp_path / "a.json").write_text(json.dumps(row))
    found = read_sidecars(tmp_path, ["a.json"], Owners(["a.png"]))
    if wanted:
        assert isinstance(beside, TableColumns) and beside.captions[0] == wanted
        assert choose_columns("t", [{"image": PICTURE, **row}], [], "", "").caption == wanted
        assert found.texts == {"a.png": row[wanted]}
        return
    assert isinstance(beside, Unclear) or len(beside.captions) == 2, "rows of both are compared one by one"
    with pytest.raises(DataError, match="several columns may hold the captions"):
        choose_columns("t", [{"image": PICTURE, **row}], [], "", "")
    assert "several keys may be the caption" in found.unclear["a.json"] and not found.texts


def test_what_was_not_chosen_is_told() -> None:
    found = choose_columns("t", [{"image": PICTURE, "text": "a", "prompt": "b", "json": {"alt": "c d"}}], [], "", "")
    assert (found.caption, found.unread) == ("text", ("prompt", "json.alt"))
    assert choose_columns("t", [{"image": PICTURE, "text": "a", "prompt": "b"}], [], "", "prompt").unread == ()


def test_a_title_that_is_a_name_of_a_file_is_no_caption(tmp_path: Path) -> None:
    """Google Takeout lays such files beside pictures."""
    (tmp_path / "a.jpg.json").write_text(json.dumps({"title": "IMG_0001.jpg", "description": "", "imageViews": "3"}))
    (tmp_path / "c.jpg.json").write_text(json.dumps({"title": "my mug.JPG", "description": ""}))
    (tmp_path / "b.jpg.json").write_text(json.dumps({"title": "IMG_0002.jpg", "description": "a mug"}))
    found = read_sidecars(tmp_path, ["a.jpg.json", "b.jpg.json", "c.jpg.json"], Owners(["a.jpg", "b.jpg", "c.jpg"]))
    assert found.texts == {"b.jpg": "a mug"} and not found.unclear


def test_the_metadata_of_an_album_is_no_table(tmp_path: Path) -> None:
    """So Google Takeout calls them; a table that is written badly stays a problem."""
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "metadata.json").write_text(json.dumps({"title": "Holiday", "description": "", "access": "protected"}))
    report = audit(tmp_path, trigger="sks", class_word="mug", allow_uncaptioned=True)
    assert not report.problems and [(r.file, r.reason) for r in report.rejected] == [
        ("metadata.json", "unsupported type")
    ]
    (tmp_path / "metadata.json").write_text('{"a.png": "a mug"')
    assert audit(tmp_path, trigger="sks", class_word="mug").problems


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM"])
def test_each_format_is_known_by_its_first_bytes(form: str) -> None:
    data = picture_bytes(3, form)
    assert format_of(data) == form and SUFFIXES[form][0] in IMAGE_SUFFIXES
    assert form == "AVIF" or diagnose(data[:20], ".x")[0] == "truncated"


def test_other_files_are_no_pictures() -> None:
    for other in (b"", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypmp42", b"%PDF-1.7", b"a mug", b"PK\3\4"):
        assert format_of(other) == "", other
