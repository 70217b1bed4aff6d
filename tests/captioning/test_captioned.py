"""Captions go where a person wrote none, as they are made; what else is in the table stays."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from finetune.captioning.captioner import Answer
from finetune.captioning.dataset import Captioned, caption_dataset
from finetune.data import dataset
from finetune.data.audit import audit
from finetune.data.prepare import prepare
from finetune.data.text.wording import CaptionWords
from finetune.errors import DataError, Interrupted
from finetune.events import Advanced, Stage, Warned, unheard

WORDS = CaptionWords("sks", "mug")


class Parrot:
    """Says of each picture what it was told to, else its number; stops at one."""

    def __init__(self, said: dict[str, Answer | BaseException] | None = None) -> None:
        self.said, self.seen, self.batch = said or {}, list[str](), 2

    def check(self, files: Sequence[Path]) -> None:
        self.asked = len(files)

    def __call__(self, files: Sequence[Path]) -> list[Answer]:
        answers = []
        for file in files:
            answer = self.said.get(file.stem, Answer(f"a mug on table {file.stem}"))
            if isinstance(answer, BaseException):
                raise answer
            self.seen.append(file.stem)
            answers.append(answer)
        return answers


def photos(folder: Path, count: int = 5) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(folder / f"IMG_{i}.png")
    return folder


def captioned(path: Path, parrot: Parrot, words: CaptionWords = WORDS, again: bool = False) -> Captioned:
    return unheard(caption_dataset(path, words, lambda _: parrot, again))


def rows(path: Path) -> dict[str, dict[str, object]]:
    return {r["file_name"]: r for r in map(json.loads, (path / "metadata.jsonl").read_text().splitlines())}


def test_a_raw_folder_gets_a_table_that_check_and_training_take(tmp_path):
    done = captioned(photos(tmp_path / "raw"), Parrot())
    assert done.captions["IMG_0.png"] == "a sks mug on table IMG_0" and len(done.captions) == 5
    found = audit(tmp_path / "raw", trigger="sks", class_word="mug")
    assert not found.problems and found.origins == {"model": 5} and found.caption_source == "metadata.jsonl"
    read = dataset.read_dataset(tmp_path / "raw", trigger="sks", class_word="mug")
    assert read.examples[3].caption == "a sks mug on table IMG_3"


def test_a_prepared_dataset_keeps_its_other_columns_and_its_card_says_the_source(tmp_path):
    made = prepare(photos(tmp_path / "raw"), tmp_path / "set", trigger="sks", class_word="mug", allow_uncaptioned=True)
    table = made.root / "metadata.jsonl"
    lines = [json.loads(line) | {"shot": i} for i, line in enumerate(table.read_text().splitlines())]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    captioned(made.root, Parrot())
    assert [row["shot"] for row in rows(made.root).values()] == [0, 1, 2, 3, 4]
    read = dataset.read_dataset(made.root)
    assert (read.card.captions, read.card.allow_uncaptioned) == ("metadata.jsonl", False)
    assert all(e.origin == "model" and e.caption.startswith("a sks mug on table") for e in read.examples)


def test_a_persons_caption_is_never_overwritten(tmp_path):
    raw = photos(tmp_path / "raw")
    (raw / "metadata.jsonl").write_text('{"file_name": "IMG_1.png", "text": "my own words", "mood": "blue"}\n')
    for again in (False, True):
        done = captioned(raw, Parrot(), again=again)
        assert done.kept["written"] == 1 and "IMG_1.png" not in done.captions
        assert rows(raw)["IMG_1.png"] == {"file_name": "IMG_1.png", "text": "my own words", "mood": "blue"}


def test_what_is_captioned_is_left_alone_until_it_is_asked_for_again(tmp_path):
    raw, parrot = photos(tmp_path / "raw"), Parrot()
    captioned(raw, parrot)
    assert captioned(raw, parrot).kept == {"model": 5} and len(parrot.seen) == 5
    captioned(raw, parrot, again=True)
    assert len(parrot.seen) == 10


def test_interrupted_it_goes_on_where_it_was(tmp_path):
    raw = photos(tmp_path / "raw")
    with pytest.raises(Interrupted, match="4 captions are written"):
        captioned(raw, Parrot({"IMG_4": KeyboardInterrupt()}))
    assert len(rows(raw)) == 4 and len(list(raw.iterdir())) == 6
    parrot = Parrot()
    captioned(raw, parrot)
    assert parrot.seen == ["IMG_4"] and len(rows(raw)) == 5


def test_answers_that_are_no_captions_are_counted_and_not_written(tmp_path):
    raw = photos(tmp_path / "raw")
    said = {"IMG_1": Answer("I cannot see it"), "IMG_2": Answer(""), "IMG_3": Answer("a dog", "not sure")}
    work, events = caption_dataset(raw, WORDS, lambda _: Parrot(said)), []
    with pytest.raises(StopIteration) as left:
        while True:
            events.append(next(work))
    assert {(one.file, one.reason) for one in left.value.value.refused} == {
        ("IMG_1.png", "refuses"), ("IMG_2.png", "empty"), ("IMG_3.png", "not sure"),
    }  # fmt: skip
    assert events[:4] == [Stage("captions", 5), Advanced(2), Advanced(4), Advanced(5)]
    assert isinstance(events[4], Warned) and "3 of 5 pictures got no caption" in events[4].text
    assert set(rows(raw)) == {"IMG_0.png", "IMG_4.png"}
    assert "3 of 5 images have no caption" in audit(raw, trigger="sks", class_word="mug").problems[0]


def test_when_no_answer_is_a_caption_nothing_is_written(tmp_path):
    raw = photos(tmp_path / "raw", 2)
    with pytest.raises(DataError, match=r"none of 2 answers can be used as a caption: empty \(2, such as IMG_0"):
        captioned(raw, Parrot(dict.fromkeys(("IMG_0", "IMG_1"), Answer(" "))))
    assert not (raw / "metadata.jsonl").exists()


@pytest.mark.parametrize("name, text", [("IMG_0.txt", "a mug"), ("metadata.csv", "file_name,text\nIMG_0.png,a mug\n")])
def test_captions_are_not_written_beside_another_source(tmp_path, name, text):
    raw = photos(tmp_path / "raw")
    (raw / name).write_text(text)
    with pytest.raises(DataError, match=f"has captions in {name}"):
        captioned(raw, Parrot())
    assert not (raw / "metadata.jsonl").exists()


def test_captions_of_a_style_name_the_style(tmp_path):
    words, said = CaptionWords("sks", kind="style"), {f"IMG_{i}": Answer(f"a bell {i}") for i in range(2)}
    done = captioned(photos(tmp_path / "raw", 2), Parrot(said), words)
    assert done.captions["IMG_1.png"] == "a bell 1, sks style"
