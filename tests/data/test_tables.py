"""Tables are read by streaming: the right columns, the bytes as they are, on from where a call was stopped."""

import base64
import json
from pathlib import Path

import datasets
import pytest
from support.sources import captioned_folder, picture_bytes, prepared_from, table_rows, write_parquet

from finetune.data.sources import rows as kept
from finetune.data.sources import staging, tables
from finetune.data.sources.columns import choose_columns
from finetune.data.sources.conditions import condition
from finetune.data.sources.names import understood
from finetune.data.sources.staging import staging_folder
from finetune.data.sources.tables import ALL, Selection
from finetune.errors import DataError
from finetune.events import Advanced, unheard


def captions(made) -> dict[str, str]:
    return {e.name.removeprefix("images/"): e.caption for e in made.examples}


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_parquet_file_becomes_a_dataset_with_its_bytes_and_captions(tmp_path):
    rows = table_rows(range(5), license="CC0-1.0", weight=2.0, price=3)
    made, notes = prepared_from(str(write_parquet(tmp_path / "t.parquet", rows)), tmp_path / "made")
    assert captions(made) == {f"{i:06d}-bell{i}.png": f"a sks mug of row {i}" for i in range(5)}
    assert all((made.root / f"images/{i:06d}-bell{i}.png").read_bytes() == picture_bytes(i) for i in range(5))
    assert {e.attributes.license for e in made.examples} == {"CC0-1.0"} and made.examples[0].attributes.weight == 2
    said = f"{tmp_path}/t.parquet: split train, images from image, captions from text; kept: weight, license"
    assert notes == [said] and not hidden(tmp_path)


def test_what_a_hub_calls_licence_and_author_is_kept_as_such(tmp_path):
    """So is it read in a table beside pictures: `attributes.OTHER_NAMES`."""
    rows = table_rows(range(3), license_url="https://creativecommons.org/licenses/by/4.0/", artist="Ada")
    made, _ = prepared_from(str(write_parquet(tmp_path / "t.parquet", rows)), tmp_path / "made")
    assert {(e.attributes.license, e.attributes.author) for e in made.examples} == {("CC-BY-4.0", "Ada")}


def beside(folder: Path, name: str, text: str) -> Path:
    captioned_folder(folder / "p", [1, 2])
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.jsonl", '{"file_name": "p/1.jpg", "text": "a mug"}\n{"file_name": "p/2.jpg", "text": "12"}\n'),
        ("t.ndjson", '{"file_name": "p/1.jpg", "text": "a mug"}\n{"file_name": "p/2.jpg", "text": "12"}\n'),
        ("t.json", '[{"file_name": "p/1.jpg", "text": "a mug"}, {"file_name": "p/2.jpg", "text": "12"}]'),
        ("t.csv", "file_name,text\np/1.jpg,a mug\np/2.jpg,12\n"),
        ("t.csv", '\ufefffile_name;text\r\np/1.jpg;"a mug"\r\np/2.jpg;12\r\n'),
        ("t.tsv", "file_name\ttext\np/1.jpg\ta mug\np/2.jpg\t12\n"),
    ],
)
def test_a_table_names_pictures_beside_it(tmp_path, name, text):
    made, _ = prepared_from(str(beside(tmp_path, name, text)), tmp_path / "made")
    assert captions(made) == {"000000-1.jpg": "a sks mug", "000001-2.jpg": "sks, 12"}
    assert (made.root / "images/000000-1.jpg").stat().st_nlink == 1, "no second name of the user's file"


@pytest.mark.parametrize("how", ["saved", "arrow", "shards"])
def test_what_datasets_writes_is_read(tmp_path, how):
    rows = table_rows(range(4))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_list(rows, features=features)
    source = tmp_path / "set"
    if how == "saved":
        datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(source)
        source = source / "train"
    elif how == "arrow":
        made.save_to_disk(source)
        source = next(source.glob("*.arrow"))
    else:
        (source / "data").mkdir(parents=True)
        made.to_parquet(source / "data" / "train-00000-of-00001.parquet")
        made.select([0]).to_parquet(source / "data" / "test-00000-of-00001.parquet")
    out, notes = prepared_from(str(source), tmp_path / "made")
    assert captions(out) == {f"{i:06d}-bell{i}.png": f"a sks mug of row {i}" for i in range(4)}
    assert (out.root / "images/000002-bell2.png").read_bytes() == picture_bytes(2)
    assert ("split train of train, test" in notes[0]) == (how == "shards")


def test_a_split_is_named_and_an_unknown_one_is_refused_with_those_there_are(tmp_path):
    for split, seed in (("train", 1), ("test", 2)):
        (tmp_path / "set").mkdir(exist_ok=True)
        write_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet", table_rows([seed]))
    made, _ = prepared_from(str(tmp_path / "set"), tmp_path / "made", selection=Selection(split="test"))
    assert captions(made) == {"000000-bell2.png": "a sks mug of row 2"}
    with pytest.raises(DataError, match="has no split 'val'") as refused:
        prepared_from(str(tmp_path / "set"), tmp_path / "no", selection=Selection(split="val"))
    assert refused.value.hint == "the splits are: train, test" and not hidden(tmp_path)


def test_limit_and_conditions_choose_rows_and_what_they_leave_out_is_counted(tmp_path):
    rows = [row | {"aesthetic": i, "lang": "en" if i % 2 else "de"} for i, row in enumerate(table_rows(range(20)))]
    source = str(write_parquet(tmp_path / "t.parquet", rows))
    where = (condition("aesthetic >= 4"), condition("lang == en"))
    made, notes = prepared_from(source, tmp_path / "made", selection=Selection(limit=3, where=where))
    assert [n[4:6] for n in captions(made)] == ["05", "07", "09"]
    assert notes[1].endswith("7 of 10 rows are left out, as they do not meet aesthetic >= 4 and lang == en")
    with pytest.raises(DataError, match=r"has no column 'score' \(`where` 'score > 1'\)") as refused:
        prepared_from(source, tmp_path / "no", selection=Selection(where=(condition("score > 1"),)))
    assert "aesthetic" in refused.value.hint


def test_options_of_tables_are_refused_where_there_is_none(tmp_path):
    photos = captioned_folder(tmp_path / "photos", [1])
    with pytest.raises(DataError, match="`limit` applies to tables"):
        prepared_from(photos, tmp_path / "made", selection=Selection(limit=3))
    with pytest.raises(DataError, match="`ignore_column` applies to tables"):
        prepared_from(photos, tmp_path / "made", selection=Selection(ignore_columns=("a",)))


# --- columns --------------------------------------------------------------------------------------------------------

PICTURE = {"bytes": b"\x89PNG", "path": None}


@pytest.mark.parametrize(
    "row, image, caption",
    [
        ({"image": PICTURE, "text": "a b", "id": "7"}, "image", "text"),
        ({"photo": PICTURE, "blurb": "a mug", "id": "7"}, "photo", "blurb"),
        ({"jpg": PICTURE, "txt": "a mug", "__key__": "0001", "__url__": "a b.tar"}, "jpg", "txt"),
        ({"jpg": PICTURE, "json": {"caption": "a mug", "n": 1}, "__key__": "1"}, "jpg", "json.caption"),
        ({"image": PICTURE, "mask": PICTURE, "text": ["a", "b"]}, "image", "text"),
        ({"file_name": "a/b.JPG", "prompt": "x"}, "file_name", "prompt"),
        ({"image": b"\xff\xd8\xff", "label": 3}, "image", ""),
        ({"image": PICTURE, "text": "a", "captions": ["b"]}, "image", "text"),
        ({"image": PICTURE, "text": "a", "prompt": "b", "title": "c"}, "image", "text"),
        ({"image": PICTURE, "text": "a", "caption": "a"}, "image", "text"),
        ({"image": PICTURE, "description": "a", "tags": "b", "title": "c"}, "image", "description"),
        ({"image": PICTURE, "image_path": "a/b.jpg", "Alt-Text": "a"}, "image", "Alt-Text"),
        ({"png": b"\x89PNG\r\n", "json": {"prompt": "a"}, "txt": "b"}, "png", "txt"),
        ({"image": PICTURE, "url": "http://a/ b", "blurb": "a mug"}, "image", "blurb"),
    ],
)
def test_columns_are_found_where_only_one_fits(row, image, caption):
    found = choose_columns("t", [row], [], "", "")
    assert (found.image, found.caption) == (image, caption)


@pytest.mark.parametrize(
    "row, said, problem, hint",
    [
        ({"a": PICTURE, "b": PICTURE, "text": "x"}, ("", ""), "several columns hold images: a, b", "image_column"),
        ({"image": PICTURE, "text": "x", "caption": "y"}, ("", ""), "may hold the captions: text, caption", "none"),
        ({"image": PICTURE, "prompt": "x", "alt": "y"}, ("", ""), "may hold the captions: prompt, alt", "none"),
        ({"image": PICTURE, "x": "a b", "y": "c d"}, ("", ""), "may hold the captions: x, y", "caption_column"),
        ({"text": "x", "n": 3}, ("", ""), "no column holds images", "the columns are: text, n"),
        ({"image": PICTURE, "text": "x"}, ("pic", ""), r"no column 'pic' \(`image_column`\)", "image, text"),
        ({"image": PICTURE, "text": "x"}, ("", "cap"), r"no column 'cap' \(`caption_column`\)", "image, text"),
    ],
)
def test_where_several_columns_fit_or_none_they_are_listed(row, said, problem, hint):
    with pytest.raises(DataError, match=problem) as refused:
        choose_columns("t", [row], [], *said)
    assert hint in refused.value.hint


def test_a_table_without_captions_has_the_template_and_keeps_its_attributes(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "text"} for row in table_rows(range(3), weight=4)]
    rows = [row | {"image": row["image"] | {"path": None}} for row in rows]
    made, notes = prepared_from(str(write_parquet(tmp_path / "t.parquet", rows)), tmp_path / "made")
    assert {(e.origin, e.attributes.weight) for e in made.examples} == {("template", 4.0)}
    assert "no column holds captions" in notes[0]


def test_several_captions_in_a_row_are_all_kept(tmp_path):
    rows = [row | {"text": ["a mug", "one mug", "the mug"]} for row in table_rows([1])]
    made, _ = prepared_from(str(write_parquet(tmp_path / "t.parquet", rows)), tmp_path / "made")
    assert made.examples[0].caption == "a sks mug" and len(made.examples[0].attributes.captions) == 2


def test_a_column_that_cannot_be_ours_is_told_with_its_row_and_can_be_left_out(tmp_path):
    source = str(write_parquet(tmp_path / "t.parquet", table_rows([1, 2], weight=0)))
    with pytest.raises(DataError, match=r"row 0: `weight` must be") as refused:
        prepared_from(source, tmp_path / "made")
    assert "`ignore_column`" in refused.value.hint
    made, _ = prepared_from(source, tmp_path / "made", selection=Selection(ignore_columns=("weight",)))
    assert {e.attributes.weight for e in made.examples} == {1.0}


# --- rows that hold no picture --------------------------------------------------------------------------------------


def test_each_row_without_a_picture_is_rejected_with_its_number(tmp_path):
    captioned_folder(tmp_path / "in" / "p", [1])
    (tmp_path / "secret.jpg").write_bytes(picture_bytes(3, "JPEG"))
    (tmp_path / "in" / "soft.jpg").symlink_to("../secret.jpg")
    names = ["p/1.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "soft.jpg", "http://x/y.jpg", "gone.jpg", ""]
    table = tmp_path / "in" / "t.jsonl"
    table.write_text("".join(json.dumps({"image": n, "text": "a mug"}) + "\n" for n in names))
    made, _ = prepared_from(str(table), tmp_path / "made")
    assert [(r.file, r.reason) for r in made.card.rejected] == [
        ("row 1", "link"), ("row 2", "link"), ("row 3", "link"), ("row 4", "unreadable"), ("row 5", "unreadable"),
        ("row 6", "zero bytes"),
    ]  # fmt: skip
    assert made.card.seen == 7 and len(made.examples) == 1
    assert "addresses are not downloaded" in made.card.rejected[3].detail


def test_words_that_tables_take_for_nothing_are_captions(tmp_path):
    table = beside(tmp_path, "t.csv", "file_name,text\np/1.jpg,NA\np/2.jpg,null\n")
    made, _ = prepared_from(str(table), tmp_path / "made")
    assert captions(made) == {"000000-1.jpg": "sks, NA", "000001-2.jpg": "sks, null"}


def test_ten_thousand_pictures_are_in_a_folder_and_more_in_further_ones():
    names = [kept._name(n, "a", ".png") for n in (0, kept.SHARD - 1, kept.SHARD, 2 * kept.SHARD + 5)]
    assert names == ["000000-a.png", "009999-a.png", "rows-10000/010000-a.png", "rows-20000/020005-a.png"]


def test_an_image_too_large_is_rejected_and_one_that_is_none_by_the_audit(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MAX_FILE_BYTES", 20_000)
    told = table_rows(range(3))
    told[1]["image"] = {"bytes": bytes(20_001), "path": None}
    told[2]["image"] = {"bytes": b"hello", "path": None}
    made, _ = prepared_from(str(write_parquet(tmp_path / "t.parquet", told)), tmp_path / "made")
    assert [(r.file, r.reason) for r in made.card.rejected] == [
        ("000002.bin", "unsupported type"), ("row 1", "image bomb")
    ]  # fmt: skip


def test_a_picture_that_a_text_holds_is_taken_with_its_bytes(tmp_path):
    texts = [base64.b64encode(picture_bytes(n)).decode() for n in range(2)]
    rows = [{"image": texts[0], "text": "a mug"}, {"image": f"data:image/png;base64,{texts[1]}", "text": "a cup"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, _ = prepared_from(str(tmp_path / "t.jsonl"), tmp_path / "made")
    assert [(made.root / e.name).read_bytes() for e in made.examples] == [picture_bytes(0), picture_bytes(1)]


@pytest.mark.parametrize("address", ["https://ex.org/1.jpg", "https://ex.org/1?size=2", "s3://photos/1.jpg"])
def test_a_table_of_addresses_is_refused_with_what_to_do(tmp_path, address):
    """As LAION's: no row of it is a picture."""
    (tmp_path / "t.csv").write_text(f"URL,TEXT\n{address},a mug\n,a cup\n{address},a bowl\n")
    for selection in (ALL, Selection(image_column="URL")):
        with pytest.raises(DataError, match="the column URL holds addresses") as refused:
            prepared_from(str(tmp_path / "t.csv"), tmp_path / "made", selection=selection)
        assert address in refused.value.problem and "img2dataset" in refused.value.hint and not hidden(tmp_path)


# --- files that are not whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.jsonl", b'{"image": "a.png", "text": "x"}\n{"image": "b.p'),
        ("t.json", b'[{"image": "a.png", "text": "x"}'),
        ("t.csv", b'image,text\na.png,x\nb.png,"y'),
        ("t.csv", b"image,text\na.png,x,y,z\n"),
        ("t.csv", b"image,image\na.png,x\n"),
        ("t.csv", b""),
        ("t.csv", b"\xff\xfe\0\0"),
        ("t.parquet", b""),
        ("t.parquet", b"PAR1" + bytes(300)),
        ("t.arrow", b"ARROW1" + bytes(300)),
        ("t.jsonl", b""),
    ],
)
def test_a_table_that_is_not_whole_is_a_sentence_with_its_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name) as refused:
        prepared_from(str(tmp_path / name), tmp_path / "made")
    assert refused.value.hint and not hidden(tmp_path) and not (tmp_path / "made").exists()


def test_a_half_written_parquet_is_refused_before_anything_is_written(tmp_path):
    whole = write_parquet(tmp_path / "whole.parquet", table_rows(range(8))).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half.parquet cannot be read") as refused:
        prepared_from(str(tmp_path / "half.parquet"), tmp_path / "made")
    assert "the file may be incomplete" in refused.value.hint and not hidden(tmp_path)


# --- going on -------------------------------------------------------------------------------------------------------


def interrupted(source: str, out: Path, selection: Selection, rows: int) -> None:
    """A call that is stopped after so many pictures, at any place."""
    work = staging.staging(understood(source)[0], selection, out)
    for event in work:
        if isinstance(event, Advanced) and event.done >= rows:
            break
    work.close()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_an_interrupted_call_goes_on_where_it_was(tmp_path, monkeypatch, form):
    monkeypatch.setattr(staging, "_SAID_EVERY", 1)
    source = tmp_path / f"t.{form}"
    if form == "parquet":
        write_parquet(source, table_rows(range(90)), group=20)
    else:
        captioned_folder(tmp_path / "p", range(90))
        source.write_text("".join(json.dumps({"image": f"p/{i}.jpg", "text": f"a mug {i}"}) + "\n" for i in range(90)))
    unbroken, _ = prepared_from(str(source), tmp_path / "unbroken")
    interrupted(str(source), tmp_path / "made", ALL, 60)
    read: list[int] = []
    keep = staging.keep_row
    monkeypatch.setattr(staging, "keep_row", lambda number, *more: (read.append(number), keep(number, *more))[1])
    made, notes = prepared_from(str(source), tmp_path / "made")
    assert "50 rows were already read by an earlier command" in notes[1]
    assert read == [*range(50, 90)] and captions(made) == captions(unbroken)
    assert made.fingerprint == unbroken.fingerprint and not hidden(tmp_path)


def test_a_line_that_was_cut_off_and_rows_after_the_last_place_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_SAID_EVERY", 1)
    source = str(write_parquet(tmp_path / "t.parquet", table_rows(range(60))))
    interrupted(source, tmp_path / "made", ALL, 40)
    (journal,) = staging_folder(tmp_path / "made").rglob(staging._JOURNAL)
    with journal.open("ab") as file:
        file.write(b'{"row": 40, "file_na')
    work = staging.staging(understood(source)[0], ALL, tmp_path / "made")
    while True:
        try:
            next(work)
        except StopIteration as e:
            staged = e.value
            break
    listed = (staged.root / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"][:6] for line in listed] == [f"{n:06d}" for n in range(60)]


def test_other_arguments_do_not_use_what_was_read_and_it_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_SAID_EVERY", 1)
    source = str(write_parquet(tmp_path / "t.parquet", table_rows(range(60))))
    interrupted(source, tmp_path / "made", ALL, 40)
    kept = list(staging_folder(tmp_path / "made").iterdir())
    unheard(staging.staging(understood(source)[0], Selection(limit=5), tmp_path / "made"))
    assert len(kept) == 1 and len(list(staging_folder(tmp_path / "made").iterdir())) == 2
    _, notes = prepared_from(source, tmp_path / "made")
    assert "25 rows were already read by an earlier command" in notes[1]


def test_a_source_that_changed_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_SAID_EVERY", 1)
    source = write_parquet(tmp_path / "t.parquet", table_rows(range(60)))
    interrupted(str(source), tmp_path / "made", ALL, 40)
    write_parquet(source, table_rows(range(100, 130)))
    made, notes = prepared_from(str(source), tmp_path / "made")
    assert len(made.examples) == 30 and len(notes) == 1


def test_a_picture_that_is_lost_meanwhile_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_SAID_EVERY", 1)
    source = str(write_parquet(tmp_path / "t.parquet", table_rows(range(90))))
    interrupted(source, tmp_path / "made", ALL, 80)
    next(staging_folder(tmp_path / "made").rglob("000030-*.png")).write_bytes(b"")
    made, notes = prepared_from(source, tmp_path / "made")
    assert "25 rows were already read" in notes[1] and len(made.examples) == 90


def test_words_that_were_forgotten_need_no_second_reading(tmp_path):
    source = str(write_parquet(tmp_path / "t.parquet", table_rows(range(3))))
    with pytest.raises(DataError):
        prepared_from(source, tmp_path / "made", template="{oops}")
    rows = [{"image": row["image"] | {"path": None}} for row in table_rows(range(3))]
    bare = str(write_parquet(tmp_path / "bare.parquet", rows))
    with pytest.raises(DataError, match="no trigger or class word to make them from") as refused:
        prepared_from(bare, tmp_path / "bare", trigger=None, class_word=None)
    assert refused.value.hint == "give `trigger` and `class_word`, and prepare again"
    made, notes = prepared_from(bare, tmp_path / "bare")
    assert notes == [f"{bare} was already read by an earlier command, and is reused"] and len(made.examples) == 3


def test_pictures_are_read_one_by_one_however_long_the_table_is(tmp_path):
    """Of a row group of all rows only a few are held: seen in how far the file was read when the first row came."""
    source = write_parquet(tmp_path / "t.parquet", table_rows(range(300)))
    table = tables.open_table(understood(str(source))[0], ALL, tmp_path)
    rows = table.rows(0, None)
    assert [next(rows)["text"] for _ in range(17)][-1] == "a mug of row 16" and table.position() == {"row": 17}
    assert [row["text"] for row in table.rows(298, {"row": 298})] == ["a mug of row 298", "a mug of row 299"]


def test_nothing_hidden_is_left_once_the_dataset_is_whole(tmp_path, monkeypatch):
    """Not either where the call is stopped while it reads what it wrote: the same call would find `out` in its way."""
    from finetune.data import prepare as preparing

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "reading_dataset", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepared_from(str(write_parquet(tmp_path / "t.parquet", table_rows(range(3)))), tmp_path / "made")
    assert (tmp_path / "made/dataset.toml").is_file() and not hidden(tmp_path)
