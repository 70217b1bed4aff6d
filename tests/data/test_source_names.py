"""What the user names as a source: a path that exists wins; a weight, a hub id, an archive or a table is told apart."""

import os
from pathlib import Path

import pytest
from support.sources import captioned_folder, picture_bytes

from finetune.data.sources import names
from finetune.data.sources.conditions import all_hold, condition
from finetune.data.sources.names import understood
from finetune.errors import DataError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    captioned_folder(tmp_path / "photos", [1])
    return tmp_path


def test_a_weight_follows_a_colon(here):
    (source,) = understood("photos:2.5")
    assert (source.written, source.kind, source.weight, source.path) == ("photos", "folder", 2.5, Path("photos"))


def test_a_folder_whose_name_ends_like_a_weight_is_that_folder(here):
    (here / "photos:2").mkdir()
    (source,) = understood("photos:2")
    assert source.path == Path("photos:2") and source.weight == 1
    (source,) = understood("photos:2:3")
    assert source.path == Path("photos:2") and source.weight == 3


def test_a_path_object_has_no_weight(here):
    with pytest.raises(DataError, match="no folder photos:2"):
        understood(Path("photos:2"))


def test_a_drive_letter_is_no_source_with_a_weight(here):
    for text in (r"C:\photos", r"C:\photos:2"):
        with pytest.raises(DataError, match=r"no folder C:\\photos"):
            understood(text)


def test_a_bundled_example_has_a_weight_as_well():
    (source,) = understood("example:product:3")
    assert source.kind == "folder" and source.weight == 3


@pytest.mark.parametrize("number", ["0", "-1", "1001", "inf", "nan", "1e9"])
def test_a_weight_that_cannot_be_is_refused_with_one_that_can(here, number):
    with pytest.raises(DataError, match="is not a weight") as refused:
        understood(f"photos:{number}")
    assert "photos:2" in refused.value.hint


def test_a_hub_id_has_a_revision_and_a_weight(here):
    (source,) = understood("org/name@v1.0:0.5")
    assert (source.kind, source.hub, source.revision, source.weight) == ("hub", "org/name", "v1.0", 0.5)
    assert source.label == "org--name"


def test_a_misspelt_folder_beside_others_is_not_asked_of_the_hub(here):
    with pytest.raises(DataError, match="no folder photos/mugs"):
        understood("photos/mugs")


@pytest.mark.parametrize("text", ["../name/x", "./org/name", "/org/name", "org/name/more", "name"])
def test_what_cannot_be_a_hub_id_is_a_folder_that_is_not_there(here, text):
    with pytest.raises(DataError, match="no folder"):
        understood(text)


def test_labels_are_unique_whatever_their_case(here):
    captioned_folder(here / "a" / "Photos", [2])
    (here / "photos.zip").write_bytes(b"")
    assert [s.label for s in understood(["photos", "a/Photos", "photos.zip"])] == ["photos", "Photos-2", "photos-3"]


def test_a_source_named_twice_is_refused_with_a_weight_instead(here):
    os.symlink("photos", "again")
    for pair in (["photos", "photos:2"], ["photos", "again"], ["org/name", "org/name:2"]):
        with pytest.raises(DataError, match="is named twice") as refused:
            understood(pair)
        assert refused.value.hint.endswith(":2")


def test_no_source_at_all_is_said():
    with pytest.raises(DataError, match="there is no source"):
        understood([])


@pytest.mark.parametrize(
    "name, says", [("a.jpg", "is one image"), ("a.rar", "is an archive of an unsupported kind"), ("a.pdf", "is a file"),
                   ("a.HEIC", "is one image")]
)  # fmt: skip
def test_a_file_that_is_no_source_is_told_what_one_is(here, name, says):
    (here / name).write_bytes(picture_bytes(1))
    with pytest.raises(DataError, match=says) as refused:
        understood(name)
    assert "folder" in refused.value.hint


def test_a_folder_of_tables_without_a_picture_is_a_table(here):
    (here / "clone" / "data").mkdir(parents=True)
    (here / "clone" / "data" / "train-00000.parquet").touch()
    assert understood("clone")[0].kind == "table"
    (here / "clone" / "cover.png").touch()
    assert understood("clone")[0].kind == "folder"
    (here / "photos" / "metadata.parquet").touch()
    assert understood("photos")[0].kind == "folder"
    assert not names.holds_tables(here / "photos")


def test_captions_alone_make_no_table_and_hidden_folders_are_not_looked_at(here):
    (here / "lone").mkdir()
    (here / "lone" / "metadata.parquet").touch()
    assert understood("lone")[0].kind == "folder"
    (here / "clone" / ".git").mkdir(parents=True)
    (here / "clone" / ".git" / "logo.png").touch()
    (here / "clone" / "train.parquet").touch()
    assert understood("clone")[0].kind == "table"


# --- conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, cells, holds",
    [
        ("aesthetic > 5", {"aesthetic": 5.5}, True),
        ("aesthetic > 5", {"aesthetic": 5}, False),
        ("aesthetic>=5", {"aesthetic": "5"}, True),
        ("lang == en", {"lang": "en"}, True),
        ("lang = en", {"lang": "de"}, False),
        ("lang != en", {"lang": "de"}, True),
        ("lang != en", {"lang": None}, False),
        ("lang != en", {"lang": ""}, False),
        ("lang == 'a = b'", {"lang": "a = b"}, True),
        ("nsfw == false", {"nsfw": False}, True),
        ("nsfw != true", {"nsfw": True}, False),
        ("n == 10", {"n": 10.0}, True),
        ("`two words` < 1e3", {"two words": -1}, True),
        ("aesthetic < 5", {"aesthetic": None}, False),
    ],
)
def test_a_condition_compares_a_column_with_a_value(written, cells, holds):
    assert all_hold([condition(written)], cells, "row 0") is holds


@pytest.mark.parametrize(
    "written",
    ["", "aesthetic", "> 5", "a > ", "a > big", "a > 5 and b < 3", "f(x) == ", "a == 1 or 1", "a == b or c",
     "a == b & c", "a == b == c"],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_one_that_is(written):
    with pytest.raises(DataError, match="`where`") as refused:
        condition(written)
    assert "'aesthetic > 5'" in refused.value.hint


def test_a_word_compared_as_a_number_is_told_with_its_row():
    with pytest.raises(DataError, match="row 7: `lang` is 'en'"):
        all_hold([condition("lang > 3")], {"lang": "en"}, "row 7")
    with pytest.raises(DataError, match="`nsfw` is true or false"):
        all_hold([condition("nsfw > 0")], {"nsfw": True}, "row 7")
