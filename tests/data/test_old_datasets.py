"""Datasets that an earlier version prepared are read as they were: the same captions, the same fingerprint."""

import base64
from pathlib import Path

from finetune.data.dataset import read_dataset

CARD = """\
format = 1
tool = "finetune 0.1.0"
trigger = "sks"
class_word = "mug"
kind = "product"
license = "CC-BY-4.0"
source = "studio"
background = "white"
captions = "sidecars"
allow_uncaptioned = true
images = 3
seen = 4
rejected = [["broken.jpg", "truncated", "it ends inside its header"]]

[changes]
"EXIF rotation applied" = 1
"""
TABLE = """\
{"file_name": "images/a.png", "text": "a sks mug on a table", "caption_by": "written"}
{"file_name": "images/b.png", "text": "sks mug from above", "caption_by": "written"}
{"file_name": "images/c.png", "text": "a photo of sks mug", "caption_by": "template"}
"""
PIXELS = {"a": "LUlEQVR42u3NMQEAAAQAMATRP4pYSvBtBZbTHZ8qngkEAoFAIBAIBAKBQHBnAdGpAVTD6XCt",
          "b": "LUlEQVR42u3NMQEAAAQAMATRP4pYSvBtBZY9HZ8qngkEAoFAIBAIBAKBQHBnAdD/AVTk59qB",
          "c": "LUlEQVR42u3NMQEAAAQAMATRP4pYSvBtBZbdE58qngkEAoFAIBAIBAKBQHBnAdBVAVRIyMLO"}  # fmt: skip
BEFORE, AFTER = "iVBORw0KGgoAAAANSUhEUgAAACAAAAAoCAIAAAAQS2/OAAAA", "AAAAAElFTkSuQmCC"
FINGERPRINT = "b79951c7b5764593d99bb11ff29891ea8b877f1cbc5b11d5c7eb955c45e6dff6"


def old_dataset(folder: Path) -> Path:
    """As version 0.1.0 wrote it."""
    (folder / "images").mkdir(parents=True)
    for name, pixels in PIXELS.items():
        (folder / "images" / f"{name}.png").write_bytes(base64.b64decode(BEFORE + pixels + AFTER))
    (folder / "dataset.toml").write_text(CARD)
    (folder / "metadata.jsonl").write_text(TABLE)
    return folder


def test_an_old_dataset_reads_as_it_did(tmp_path: Path) -> None:
    dataset = read_dataset(old_dataset(tmp_path / "mug"))
    assert [e.caption for e in dataset.examples] == ["a sks mug on a table", "sks mug from above", "a photo of sks mug"]
    assert [e.origin for e in dataset.examples] == ["written", "written", "template"]
    assert len(dataset.examples[2].wordings) > 1 and dataset.license == "CC-BY-4.0" and dataset.source == "studio"
    assert dataset.fingerprint == FINGERPRINT


def test_an_old_dataset_of_one_caption_each_has_no_further_word_of_it(tmp_path: Path) -> None:
    """No picture gains a weight, a mask or a place outside of training."""
    from finetune.data.attributes import NO_ATTRIBUTES

    dataset = read_dataset(old_dataset(tmp_path / "mug"))
    assert all(e.attributes == NO_ATTRIBUTES for e in dataset.examples)
