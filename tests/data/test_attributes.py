"""What is known of a picture beside its caption comes from the table, and goes through a prepared dataset."""

import json
from pathlib import Path

import pytest
from support.nasty_folder import picture

from finetune.data.attributes import NO_ATTRIBUTES, Attributes, cells_of, read_attributes
from finetune.data.audit import audit
from finetune.data.dataset import read_dataset
from finetune.data.prepare import prepare

TOLD = {
    "captions": ["sks mug, side view"], "weight": 2.5, "split": "validation", "mask_file_name": "masks/a.png",
    "license": "CC-BY-4.0", "author": "Ada", "source": "https://example.org/1", "consent": "file 7",
}  # fmt: skip


def test_every_fact_goes_through_its_columns_and_usual_ones_have_none():
    attributes = read_attributes(TOLD)
    assert attributes == Attributes(("sks mug, side view",), 2.5, True, "masks/a.png", "CC-BY-4.0", "Ada",
                          "https://example.org/1", "file 7")  # fmt: skip
    assert (
        cells_of(attributes) == TOLD
        and cells_of(NO_ATTRIBUTES) == {}
        and read_attributes({"file_name": "a", "hue": 3}) == NO_ATTRIBUTES
    )


@pytest.mark.parametrize(
    "cells",
    [{"weight": 0}, {"weight": "much"}, {"weight": True}, {"weight": float("nan")}, {"weight": 1e9},
     {"weight": 10**400}, {"captions": "one"}, {"captions": [1]}, {"split": "no"}, {"license": 4}, {"weight": [1]}],
)  # fmt: skip
def test_a_cell_that_cannot_be_is_named(cells):
    [column] = cells
    with pytest.raises(ValueError, match=f"`{column}`"):
        read_attributes(cells)


def test_facts_are_kept_when_a_folder_is_prepared(tmp_path: Path):
    source = tmp_path / "photos"
    source.mkdir()
    for n in range(2):
        picture(n).save(source / f"{n}.png")
    told = {name: value for name, value in TOLD.items() if name != "mask_file_name"}
    rows = [{"file_name": "0.png", "text": "sks mug, from above"} | told, {"file_name": "1.png", "text": "a sks mug"}]
    (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(source, tmp_path / "out", trigger="sks", class_word="mug")
    made = read_dataset(tmp_path / "out")
    assert made.examples[0].attributes == read_attributes(told) and made.examples[1].attributes == NO_ATTRIBUTES
    rows[0]["weight"] = "heavy"
    (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [problem] = [p for p in audit(source, trigger="sks", class_word="mug").problems if "weight" in p]
    assert problem.startswith("metadata.jsonl line 1: `weight` must be a number")
