"""Captions as other trainers leave them: sidecars, tables of any name and shape, and what was not understood."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finetune.data.audit import Audit, audit
from finetune.data.prepare import prepare
from finetune.errors import DataError

WANTED = [f"a mug, view {i}" for i in range(4)]


def read(root: Path, **options: object) -> Audit:
    return audit(root, trigger=None, class_word=None, **options)  # type: ignore[arg-type]


def captions(root: Path) -> list[str]:
    found = read(root)
    assert not found.problems and not found.rejected, (found.problems, found.rejected)
    assert found.files == found.seen + found.captions + len(found.ignored)
    return [e.caption for e in found.used]


def problem(root: Path, **options: object) -> str:
    """The one problem, which prepare does not pass over."""
    found = read(root, **options)
    with pytest.raises(DataError):
        prepare(root, root.parent / "out", trigger="sks", class_word="mug")
    assert not (root.parent / "out").exists()
    expected = ("no trigger or class word to make them from", " images have no caption")
    said = [p for p in found.problems if not any(one in p for one in expected)]
    assert len(said) == 1, found.problems
    return said[0]


def rows(**columns: list[object]) -> list[dict[str, object]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


NAMES: list[object] = [f"{i}.jpg" for i in range(4)]


def table(file: Path, header: str, delimiter: str, encoding: str = "utf-8") -> None:
    quoted = [f'"{text}"' if delimiter in text else text for text in WANTED]
    lines = [header, *(f"{name}{delimiter}{text}" for name, text in zip(NAMES, quoted, strict=True))]
    file.write_bytes("\r\n".join(lines).encode(encoding))


# --- what is understood ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{i}.txt", "{i}.caption", "{i}.jpg.txt", "{i}.jpg.caption", "{i}.jpg.TXT"])
def test_a_sidecar_may_keep_the_pictures_suffix(name: str, photos: Path) -> None:
    for i, text in enumerate(WANTED):
        (photos / name.format(i=i)).write_text(text)
    assert captions(photos) == WANTED


@pytest.mark.parametrize("key", ["caption", "text", "prompt", "description"])
@pytest.mark.parametrize("name", ["{i}.json", "{i}.jpg.json"])
def test_a_json_sidecar_may_call_the_caption_what_trainers_do(key: str, name: str, photos: Path) -> None:
    for i, text in enumerate(WANTED):
        (photos / name.format(i=i)).write_text(json.dumps({key: text, "width": 96, "sha256": "0 1"}))
    assert captions(photos) == WANTED


def test_ai_toolkits_short_caption_is_a_further_one(photos: Path) -> None:
    for i, text in enumerate(WANTED):
        (photos / f"{i}.json").write_text(json.dumps({"caption": text, "caption_short": f"mug {i}"}))
    found = read(photos)
    assert [(e.caption, e.attributes.captions) for e in found.used] == [
        (t, (f"mug {i}",)) for i, t in enumerate(WANTED)
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_texts_from_windows_are_read(encoding: str, photos: Path) -> None:
    for i, text in enumerate(WANTED):
        (photos / f"{i}.txt").write_bytes(f"{text} ü\r\n".encode(encoding))
    assert captions(photos) == [f"{text} ü" for text in WANTED]


def test_two_files_that_say_the_same_are_one_caption(photos: Path) -> None:
    for i, text in enumerate(WANTED):  # as img2dataset leaves them
        (photos / f"{i}.txt").write_text(text)
        (photos / f"{i}.json").write_text(json.dumps({"caption": text, "key": f"{i}"}))
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows(file_name=NAMES, text=list(WANTED)))))
    assert captions(photos) == WANTED
    assert read(photos).caption_source == "metadata.jsonl and sidecars"


@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv", "train.tsv", "captions.txt", "sub.CSV"])
@pytest.mark.parametrize(
    ("header", "delimiter"),
    [("file_name,text", ","), ("image;caption", ";"), ("Path\tPrompt", "\t"), ("filename| description", "|")],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_of_any_name_delimiter_and_columns(
    name: str, header: str, delimiter: str, encoding: str, photos: Path
) -> None:
    table(photos / name, header, delimiter, encoding)
    assert captions(photos) == WANTED


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.jsonl", "data.ndjson", "captions.json"])
@pytest.mark.parametrize("columns", [("image", "text"), ("image_path", "caption"), ("file_name", "prompt")])
def test_a_json_table_of_any_name_and_columns(name: str, columns: tuple[str, str], photos: Path) -> None:
    found = rows(**{columns[0]: NAMES, columns[1]: list(WANTED)})
    lines = "\n".join(map(json.dumps, found))
    (photos / name).write_text(json.dumps(found) if name.endswith(".json") else lines)
    assert captions(photos) == WANTED


def test_a_parquet_table_is_read_and_a_half_written_one_named(photos: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(file_name=NAMES, text=list(WANTED))),
                                photos / "metadata.parquet")  # fmt: skip
    assert captions(photos) == WANTED
    whole = (photos / "metadata.parquet").read_bytes()
    (photos / "metadata.parquet").write_bytes(whole[: len(whole) // 2])
    assert "metadata.parquet is not a parquet file, or incomplete" in problem(photos)


@pytest.mark.parametrize("key", ["{i}.jpg", "{i}", "/home/me/set/{i}.jpg", "C:\\set\\{i}.jpg"])
@pytest.mark.parametrize("value", [lambda t: {"caption": t, "tags": "1mug, solo"}, lambda t: t, lambda t: [t, "mug"]])
def test_kohyas_metadata_and_its_like_are_keyed_by_file(key: str, value, photos: Path) -> None:
    if key == "{i}" and value("") == "":
        pytest.skip("plain texts under plain names may be anything")
    if key == "{i}" and isinstance(value(""), list):
        pytest.skip("lists under plain names may be anything")
    found = {key.format(i=i): value(text) for i, text in enumerate(WANTED)}
    (photos / "meta_cap.json").write_text(json.dumps(found))
    tags = ", 1mug, solo" if isinstance(value(""), dict) else ""
    assert captions(photos) == [text + tags for text in WANTED]
    if key.startswith(("/", "C:")):
        assert any("by their file names in other folders" in note for note in read(photos).understood)


def test_tables_of_splits_complete_each_other(photos: Path) -> None:
    for name, some in (("train.jsonl", slice(0, 3)), ("val.jsonl", slice(3, 4))):
        lines = map(json.dumps, rows(file_name=NAMES[some], text=list(WANTED[some])))
        (photos / name).write_text("\n".join(lines))
    assert captions(photos) == WANTED


def test_a_table_beside_the_folder_of_pictures_finds_them_by_name(photos: Path) -> None:
    (photos / "images").mkdir()
    for name in NAMES:
        (photos / str(name)).rename(photos / "images" / str(name))
    table(photos / "captions.csv", "image,caption", ",")
    assert captions(photos) == WANTED


def test_a_table_without_captions_leaves_the_template_and_its_other_columns(photos: Path) -> None:
    (photos / "metadata.csv").write_text("file_name,license\n" + "".join(f"{n},CC0-1.0\n" for n in NAMES))
    found = audit(photos, trigger="sks", class_word="mug")
    assert not found.problems and {e.attributes.license for e in found.used} == {"CC0-1.0"}
    assert {e.origin for e in found.used} == {"template"}


def test_other_columns_than_the_caption_are_named(photos: Path) -> None:
    found = rows(file_name=NAMES, text=list(WANTED), prompt=["a b"] * 4)
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, found)))
    assert captions(photos) == WANTED
    assert "captions come from the column text; not used: prompt" in read(photos).understood[0]


# --- what is not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("file_name,beschriftung", "no column is known to hold captions: its columns are 'file_name', 'beschriftung'"),
        ("bild,text", ""),
        ("0.jpg,a mug view", "the first line must name the columns, as file_name and text; its columns are '0.jpg'"),
        ("note,text", "no column names the pictures"),
    ],
)
@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv"])
def test_columns_that_are_not_known_are_named_with_those_that_are_wanted(
    name: str, header: str, said: str, photos: Path
) -> None:
    table(photos / name, header, ",")
    if header.startswith("note"):
        (photos / name).write_text("note,text\n" + "".join(f"new,{text}\n" for text in ("a mug", "a cup")))
    if not said:  # its values are the pictures' names
        assert captions(photos) == WANTED
    else:
        found = problem(photos)
        assert (
            found.startswith(name)
            and said in found
            and any(w in found for w in ("text, caption", "file_name and text", "file_name, filename"))
        )


def test_several_columns_that_may_be_captions_are_a_question(photos: Path) -> None:
    found = rows(file_name=NAMES, prompt=list(WANTED), description=["a b"] * 4)
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, found)))
    assert "several columns may be the captions: prompt, description" in problem(photos)


def test_a_caption_with_commas_that_is_not_quoted_is_not_cut_off(photos: Path) -> None:
    rows = "".join(f"{name},{text}\n" for name, text in zip(NAMES, WANTED, strict=True))
    (photos / "metadata.csv").write_text(f"file_name,text\n{rows}")
    found = read(photos)
    assert "metadata.csv line 2: more values than columns; put quotes around" in found.problems[0]


@pytest.mark.parametrize("name", ["{i}.tags", "{i}.jpg.prompt", "{i}.md"])
def test_text_beside_pictures_under_another_suffix_is_a_problem_that_names_the_right_one(
    name: str, photos: Path
) -> None:
    for i, text in enumerate(WANTED):
        (photos / name.format(i=i)).write_text(text)
    said = problem(photos)
    assert "4 text files" in said and name.format(i=0) in said and "expected is 0.txt, .caption or .json" in said


def test_captions_in_another_folder_are_a_problem_and_one_text_is_just_rejected(photos: Path) -> None:
    (photos / "captions").mkdir()
    for i, text in enumerate(WANTED):
        (photos / "captions" / f"{i}.txt").write_text(text)
    assert "4 caption files have no picture beside them" in problem(photos) and "0.txt for 0.jpg" in problem(photos)
    for i in range(4):
        (photos / "captions" / f"{i}.txt").unlink()
    for name in ("readme.txt", "LICENSE.txt", "other.txt"):
        (photos / name).write_text("Photos of my mug, summer.")
    found = audit(photos, trigger="sks", class_word="mug")
    assert not found.problems and {r.file for r in found.rejected} == {"readme.txt", "LICENSE.txt", "other.txt"}


def test_a_list_of_captions_that_is_no_table_is_a_problem(photos: Path) -> None:
    (photos / "captions.txt").write_text("".join(f"{n} - {t}\n" for n, t in zip(NAMES, WANTED, strict=True)))
    assert "captions.txt names pictures that have no caption, but cannot be read as a table" in problem(photos)


def test_a_json_sidecar_without_a_known_key_is_a_problem_that_names_its_keys(photos: Path) -> None:
    for i, text in enumerate(WANTED):
        (photos / f"{i}.json").write_text(json.dumps({"beschriftung": text, "width": 96}))
    said = problem(photos)
    assert "0.json: no key is known to hold a caption: beschriftung, width; name it one of text, caption" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [("workflow.json", '{"nodes": [], "links": [], "version": 1}'), ("log.csv", "step,loss\n1,0.5\n"),
     ("scores.csv", "file_name,score\n0.jpg,3\n"), ("notes.md", "my notes"), ("0.xmp", "<x:xmpmeta/>"),
     ("0.json", '{"nodes": [], "id": "ab"}'), ("model.parquet", "nothing")],
)  # fmt: skip
def test_other_files_are_rejected_as_ever_while_every_picture_has_its_caption(
    name: str, content: str, photos: Path
) -> None:
    for i, text in enumerate(WANTED):
        (photos / f"{i}.txt").write_text(text)
    (photos / name).write_text(content)
    found = read(photos)
    assert not found.problems and [e.caption for e in found.used] == WANTED
    assert {r.file for r in found.rejected} == {name}


def test_zero_bytes_in_a_caption_are_said(photos: Path) -> None:
    for i, text in enumerate(WANTED):
        (photos / f"{i}.txt").write_bytes(text.encode("utf-16-le"))
    assert "holds zero bytes" in read(photos).problems[0]
