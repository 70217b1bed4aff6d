"""`check --html FILE`: the page is written whatever was found, where it was asked for, and over nobody's file."""

import json
import os

import pytest
from support.command import said
from support.nasty_folder import build, encoded, picture

WORDS = ("--trigger", "sks", "--class-word", "mug")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"IMG_{i}.jpg").write_bytes(encoded(picture(i, (96, 64)), "JPEG"))
    return folder


def test_the_page_is_written_and_the_last_line_says_where(capsys, photos, tmp_path):
    page = tmp_path / "new" / "mug.html"
    for _ in range(2):  # a page of ours is written again
        code, out, err = said(capsys, "check", photos, *WORDS, "--html", page)
        assert (
            code == 0
            and not err
            and out.rstrip().endswith(f"wrote {page}: 3 images as they will be cropped; open it in a browser")
        )
        assert page.read_text().count('<li class="card example"') == 3
    assert str(page) in said(capsys, "check", photos, *WORDS, "--html", page, "--quiet")[1]


def test_it_is_written_also_where_check_ends_with_2(capsys, tmp_path):
    build(tmp_path / "nasty")
    page = tmp_path / "page.html"
    code, out, err = said(capsys, "check", tmp_path / "nasty", *WORDS, "--html", page)
    text = page.read_text()
    assert (
        code == 2 and f"wrote {page}: 19 images" in out and "17 rejected files" in err and "17 rejected files" in text
    )
    assert f"finetune prepare {tmp_path / 'nasty'} --out DIR" in text and f"finetune check {tmp_path / 'nasty'}" in text


def test_the_page_names_flags_as_the_command_does(capsys, photos, tmp_path):
    page = tmp_path / "page.html"
    code, _, err = said(capsys, "check", photos, "--html", page)
    text = page.read_text()
    assert code == 2 and "--class-word mug" in err and "give --trigger and --class-word" in text and "`" not in text
    assert text.count("No caption<") == 3 and "from the template" not in text, "an empty caption is nobody's"
    assert f"finetune check {photos} --trigger sks --class-word mug" in text


def test_json_stays_one_document_and_names_the_page(capsys, photos, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = said(capsys, "check", photos, *WORDS, "--json", "--html", page)
    assert code == 0 and not err and json.loads(out)["page"] == str(page) and page.is_file()
    assert "page" not in json.loads(said(capsys, "check", photos, *WORDS, "--json")[1])


@pytest.mark.parametrize("text", ["<html>my shop</html>", '<meta name="generator" content="finetune 1">of a run'])
def test_a_file_that_is_no_page_of_a_dataset_is_left_alone(capsys, photos, tmp_path, text):
    mine = tmp_path / "index.html"
    mine.write_text(text)
    code, out, err = said(capsys, "check", photos, *WORDS, "--html", mine)
    assert code == 2 and "is not a page of a dataset" in err and "try: " in err and not out
    assert mine.read_text() == text


def test_a_page_among_the_pictures_is_refused_before_anything_is_read(capsys, photos):
    code, out, err = said(capsys, "check", photos, *WORDS, "--html", photos / "page.html")
    assert code == 2 and "inside the dataset" in err and not out and len(os.listdir(photos)) == 3


@pytest.mark.parametrize("where", ["", "blocked/page.html", "x" * 300])
def test_where_it_cannot_be_written_a_sentence_says_so(capsys, photos, tmp_path, where):
    (tmp_path / "blocked").write_text("a file")
    code, _, err = said(capsys, "check", photos, *WORDS, "--html", tmp_path / where)
    assert code == 2 and err.startswith("error: cannot write ") and "try: name another file" in err
    assert (tmp_path / "blocked").read_text() == "a file"
