"""Captions: where they are read, what a wrong one is told, and the trigger in them exactly once."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.nasty_folder import write_jsonl

from finetune import recipe
from finetune.data import dataset
from finetune.data.audit import audit
from finetune.data.text.captions import inject, without_trigger
from finetune.data.text.prompts import expand
from finetune.data.text.wording import CaptionWords, templates
from finetune.encoding.text import Captions
from finetune.errors import DataError
from finetune.families.base import Moments
from finetune.planning import plan
from finetune.training import batches, look


def captions(root: Path, **options: object) -> list[str]:
    return [e.caption for e in dataset.read_dataset(root, **options).examples]  # type: ignore[arg-type]


# --- captions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_sidecars_are_read_whatever_their_encoding_marks(suffix: str, photos: Path) -> None:
    (photos / f"0{suffix}").write_bytes(b"a red mug")
    (photos / f"1{suffix}").write_bytes(b"\xef\xbb\xbfa mug with a mark")
    (photos / f"2{suffix}").write_bytes(b"a mug\r\n")
    (photos / f"3{suffix}").write_bytes("une tasse rayée".encode())
    assert captions(photos) == ["a red mug", "a mug with a mark", "a mug", "une tasse rayée"]
    found = audit(photos)
    assert found.caption_source == "sidecars" and found.captions == 4 and found.seen == 4


def test_lines_of_a_caption_file_are_joined_where_that_is_asked_for_and_noted(photos: Path) -> None:
    for i in range(4):
        (photos / f"{i}.txt").write_bytes(b"a mug\r\non a table\r\n")
    found = audit(photos, caption_lines="joined")
    assert [e.caption for e in found.used] == ["a mug on a table"] * 4 and not found.used[0].wordings
    assert "the 2 lines of the caption are joined into one" in {n.text for n in found.notes}


@pytest.mark.parametrize("column", ["text", "caption"])
def test_a_metadata_table_is_read(column: str, photos: Path) -> None:
    (photos / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{i}.jpg", column: f"mug {i}"}) + "\n" for i in range(4))
    )
    assert captions(photos) == [f"mug {i}" for i in range(4)]
    (photos / "metadata.jsonl").unlink()
    (photos / "metadata.csv").write_bytes(
        b"\xef\xbb\xbffile_name,%s\r\n" % column.encode() + b"".join(b'%d.jpg,"mug, %d"\r\n' % (i, i) for i in range(4))
    )
    assert captions(photos) == [f"mug, {i}" for i in range(4)]


def test_a_table_in_a_sub_folder_speaks_of_that_folder(photos: Path) -> None:
    (photos.parent / "all").mkdir()
    photos.rename(photos.parent / "all" / "sub")
    write_jsonl(photos.parent / "all" / "sub" / "metadata.jsonl", {f"{i}.jpg": f"mug {i}" for i in range(4)})
    assert captions(photos.parent / "all") == [f"mug {i}" for i in range(4)]


def test_without_captions_the_template_is_used(photos: Path) -> None:
    assert captions(photos, trigger="sks", class_word="mug") == ["a photo of sks mug"] * 4
    assert captions(photos, class_word="mug") == ["a photo of a mug"] * 4
    assert captions(photos, trigger="sks", template="{trigger}, studio") == ["sks, studio"] * 4


def test_nothing_to_write_captions_from_is_an_error_unless_allowed(photos: Path) -> None:
    with pytest.raises(DataError, match="there are no captions, and no trigger or class word to make them from"):
        dataset.read_dataset(photos)
    assert captions(photos, allow_uncaptioned=True) == [""] * 4


def test_captions_for_half_are_an_error_naming_the_other_half_unless_allowed(photos: Path) -> None:
    for i in (0, 2):
        (photos / f"{i}.txt").write_text("a mug")
    with pytest.raises(DataError, match=r"2 of 4 images have no caption: 1\.jpg, 3\.jpg"):
        dataset.read_dataset(photos, trigger="sks", class_word="mug")
    assert (
        captions(photos, trigger="sks", class_word="mug", allow_uncaptioned=True)
        == [
            "a sks mug",
            "a photo of sks mug",
        ]
        * 2
    )


@pytest.mark.parametrize("blank", [b"", b"  \r\n", b"\xef\xbb\xbf"])
def test_an_empty_caption_is_a_missing_one(blank: bytes, photos: Path) -> None:
    for i in range(4):
        (photos / f"{i}.txt").write_bytes(b"a mug" if i else blank)
    with pytest.raises(DataError, match=r"1 of 4 images have no caption: 0\.jpg"):
        dataset.read_dataset(photos, trigger="sks")
    for i in range(4):
        (photos / f"{i}.txt").write_bytes(blank)
    with pytest.raises(DataError, match="every caption is empty"):
        dataset.read_dataset(photos, trigger="sks")


def test_two_sources_of_captions_are_an_error_naming_both(photos: Path) -> None:
    write_jsonl(photos / "metadata.jsonl", {f"{i}.jpg": "a mug" for i in range(4)})
    (photos / "0.txt").write_text("another mug")
    with pytest.raises(DataError, match=r"metadata\.jsonl and 0\.txt; keep one \(they differ on 0\.jpg\)"):
        dataset.read_dataset(photos)
    (photos / "0.txt").unlink()
    (photos / "metadata.csv").write_text("file_name,text\n0.jpg,another mug\n")
    with pytest.raises(DataError, match=r"two sources of captions: metadata\.csv and metadata\.jsonl; keep one"):
        dataset.read_dataset(photos)
    for table in ("metadata.csv", "metadata.jsonl"):
        (photos / table).unlink()
    (photos / "0.txt").write_text("a mug")
    (photos / "0.caption").write_text("another mug")
    with pytest.raises(DataError, match=r"two captions for 0\.jpg"):
        dataset.read_dataset(photos, allow_uncaptioned=True)


@pytest.mark.parametrize(
    "line,said",
    [
        ('{"file_name": "9.jpg", "text": "x"}', r"1 files that do not exist: '9\.jpg' \(line 5\)"),
        ('{"file_name": "../photos/0.jpg.bak", "text": "x"}', "do not exist"),
        ('{"file_name": "0.jpg", "text": "other"}', r"line 5: 0\.jpg has a second, different caption"),
        ('{"text": "x"}', "line 5: the row has no file_name"),
        ('{"file_name": "0.jpg", "text": 3}', "line 5: the row must have one caption"),
        ('{"file_name": "0.jpg", "text": "a", "caption": "b"}', "line 5: the row must have one caption"),
        ('{"file_name": ', "line 5 is not JSON"),
        ("[1]", "line 5 is a list, not a JSON object"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(line: str, said: str, photos: Path) -> None:
    write_jsonl(photos / "metadata.jsonl", {f"{i}.jpg": "a mug" for i in range(4)})
    with (photos / "metadata.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=said):
        dataset.read_dataset(photos)


def test_a_caption_that_is_not_utf_8_is_named(photos: Path) -> None:
    for i in range(4):
        (photos / f"{i}.txt").write_bytes("tasse rayée".encode("latin-1" if i == 2 else "utf-8"))
    with pytest.raises(DataError, match=r"2\.txt is not UTF-8 text \(byte 9\)"):
        dataset.read_dataset(photos)


def test_a_name_that_a_mac_decomposed_finds_its_row(photos: Path) -> None:
    (photos / "0.jpg").rename(photos / "u\u0308.jpg")
    write_jsonl(photos / "metadata.jsonl", {n: "a mug" for n in ("\u00fc.jpg", "1.jpg", "2.jpg", "3.jpg")})
    assert captions(photos) == ["a mug"] * 4


# --- the trigger ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caption,final",
    [
        ("a photo of a mug on a table", "a photo of a sks mug on a table"),
        ("Mug on a mug", "sks Mug on a mug"),
        ("a sks mug", "a sks mug"),
        ("a SKS mug", "a SKS mug"),
        ("sks mug beside another sks mug", "sks mug beside another sks mug"),
        ("a {trigger} cup", "a sks cup"),
        ("two mugs", "sks, two mugs"),
        ("asksome mugshot", "sks, asksome mugshot"),
        ("a cup", "sks, a cup"),
        ("", "sks"),
    ],
)
def test_the_trigger_is_injected_once(caption: str, final: str) -> None:
    assert inject(caption, "sks", "mug") == final
    assert inject(final, "sks", "mug") == final


@pytest.mark.parametrize("trigger", ["sks", "<s1>", "my-mug", "c++", "zwx mug"])
@pytest.mark.parametrize("class_word", ["mug", None])
@pytest.mark.parametrize("caption", ["a mug on a shelf", "something", "mug"])
def test_any_trigger_occurs_exactly_once_and_can_be_taken_out(
    trigger: str, class_word: str | None, caption: str
) -> None:
    final = inject(caption, trigger, class_word)
    assert final.count(trigger) == 1 and inject(final, trigger, class_word) == final
    assert trigger not in without_trigger(final, trigger)
    if trigger != "zwx mug":
        assert without_trigger(final, trigger) == caption


def test_a_trigger_that_has_the_class_word_does_not_repeat_it() -> None:
    assert inject("a mug on a shelf", "zwx mug", "mug") == "a zwx mug on a shelf"
    assert expand("a photo of {trigger} {class_word}", "zwx mug", "mug") == "a photo of zwx mug"


@pytest.mark.parametrize("caption", ["a mug on a shelf", "mug", "a photo of a mug, mug in front"])
@pytest.mark.parametrize("trigger", ["sks", "zwx mug", "ZWX Mug", "mug of zwx"])
def test_taking_the_trigger_out_undoes_its_injection_and_keeps_the_class_word(caption: str, trigger: str) -> None:
    assert without_trigger(inject(caption, trigger, "mug"), trigger, "mug") == caption


def test_the_class_word_is_kept_only_where_the_trigger_has_it_as_a_word() -> None:
    assert without_trigger("a zwx mug", "zwx mug", "mug") == "a mug"
    assert without_trigger("a zwxmug, mug", "zwxmug", "mug") == "a, mug"
    assert without_trigger("a zwx mug", "zwx mug") == "a"


def test_what_a_self_prior_preserves_keeps_the_class_word(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        f'base = "pocket"\n[data]\npath = "{photos}"\ntrigger = "zwx mug"\nclass_word = "mug"\n'
        '[prior]\nmode = "own_prediction"\n'
    )
    settled = plan.resolve_plan(recipe.load(tmp_path / "recipe.toml", ["data.caption_dropout=0"]))
    shown = templates(CaptionWords("zwx mug", "mug"))
    preserved = {one.replace("zwx mug", "mug") for one in shown}
    assert {p.caption for p in look.prompts(settled)} <= {"", *shown, *preserved, *settled.recipe.sample.prompts}
    family = SimpleNamespace(
        latents=lambda _, noise: noise, process=SimpleNamespace(sample_timesteps=lambda levels, _: levels)
    )
    moments = dict.fromkeys([(w.example.name, w.crop) for w in look.wanted(settled)], Moments(*torch.zeros(2, 4, 8, 8)))
    maker = batches.Batches(settled, family, moments, Captions(family, {}, torch.device("cpu")))  # type: ignore[arg-type]
    batch = maker.train(settled.train.schedule.micro_batch(0))
    assert batch.captions[0] in shown and batch.preserve == (batch.captions[0].replace("zwx mug", "mug"),)


@pytest.mark.parametrize(
    "caption,bare",
    [
        ("sks, a mug", "a mug"),
        ("a photo of sks mug", "a photo of mug"),
        ("a mug, sks, on a table", "a mug, on a table"),
        ("a mug by sks.", "a mug by."),
        ("a sks mug and a SKS cup", "a mug and a cup"),
        ("asks for a mug", "asks for a mug"),
    ],
)
def test_taking_the_trigger_out_leaves_tidy_text(caption: str, bare: str) -> None:
    assert without_trigger(caption, "sks") == bare
    assert without_trigger(caption, None) == caption


def test_a_placeholder_without_a_trigger_is_an_error(photos: Path) -> None:
    for i in range(4):
        (photos / f"{i}.txt").write_text("a {trigger} mug")
    assert captions(photos, trigger="sks") == ["a sks mug"] * 4
    with pytest.raises(DataError, match="no `trigger` is declared"):
        dataset.read_dataset(photos)


def test_a_trigger_written_twice_is_noted(photos: Path) -> None:
    for i in range(4):
        (photos / f"{i}.txt").write_text("sks mug, sks")
    notes = audit(photos, trigger="sks").notes
    assert {n.text for n in notes if n.file} == {"the caption has the trigger 'sks' more than once"}


@pytest.mark.parametrize(
    "words, problem, hint",
    [
        ({"trigger": " "}, "the trigger is blank", "write a word, or leave the trigger out"),
        ({"class_word": ""}, "the class word is blank", "write a word, or leave the class word out"),
        ({"template": "\t"}, "the template is blank", "write a word, or leave the template out"),
        ({"template": "a {subject}"}, "unknown placeholder {subject}", "use {trigger} and {class_word} only"),
        (
            {"template": "a {2$$red|blue} mug"},
            "{2$$... is a wildcard with a number",
            "write {one|another}, or a word alone",
        ),
        ({"template": "a {red|blue mug"}, "{red| is an unclosed wildcard", "write {one|another}, or a word alone"),
    ],
)
def test_blank_words_and_unknown_placeholders_are_refused_with_what_to_write(
    words: dict[str, str], problem: str, hint: str, photos: Path
) -> None:
    with pytest.raises(DataError) as refused:
        audit(photos, **words)  # type: ignore[arg-type]
    assert problem in refused.value.problem and refused.value.hint == hint
