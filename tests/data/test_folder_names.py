"""Names of folders: kohya's repeats and captions, numbers that are names, and what is held out of training."""

from pathlib import Path

import pytest
from support.nasty_folder import encoded, picture

from finetune.data import dataset
from finetune.data.audit import audit
from finetune.data.prepare import prepare
from finetune.data.text.folder_names import read_folders
from finetune.errors import DataError


def folders(root: Path, *names: str, each: int = 2) -> Path:
    """Pictures in folders of these names; "" is the root itself."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            (root / name / f"{number}{i}.png").write_bytes(encoded(picture(10 * number + i), "PNG"))
    return root


def read(*names: str, as_what: str = "auto", root: str = "photos", trigger: str | None = None):
    return read_folders(root, names, as_what, trigger)


def test_repeats_are_weights_and_the_rest_captions_pictures_that_have_none(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "10_sks mug", "2_sks mug closeup")
    (root / "10_sks mug" / "00.txt").write_text("a sks mug on a table")
    found = audit(root, trigger="sks", class_word="mug")
    assert not found.problems and not found.rejected
    told = {e.name: (e.attributes.weight, e.caption, e.origin) for e in found.used}
    assert told == {
        "10_sks mug/00.png": (10, "a sks mug on a table", "written"),
        "10_sks mug/01.png": (10, "sks mug", "folder"),
        "2_sks mug closeup/10.png": (2, "sks mug closeup", "folder"),
        "2_sks mug closeup/11.png": (2, "sks mug closeup", "folder"),
    }
    [note] = found.understood
    assert "10_sks mug (weight 10, pictures: 2)" in note and "`folder_names` to plain" in note
    assert note in [n.text for n in found.notes]


def test_a_prepared_dataset_keeps_the_balance_and_says_it(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "10_sks mug", "2_sks mug closeup")
    made = prepare(root, tmp_path / "out", trigger="sks", class_word="mug")
    assert made.understood and "weight 10" in made.understood[0]
    again = dataset.read_dataset(tmp_path / "out")
    assert sorted(e.attributes.weight for e in again.examples) == [2, 2, 10, 10]
    assert any("2 at 10, 2 at 2" in n.text for n in audit(tmp_path / "out").notes)
    assert {e.origin for e in again.examples} == {"folder"} and all(len(e.wordings) > 1 for e in again.examples)


def test_a_caption_of_trigger_and_class_word_alone_is_varied_like_the_template(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "10_sks mug")
    [first, _] = audit(root, trigger="sks", class_word="mug").used
    assert first.caption == "sks mug" and "a photo of sks mug" in first.wordings and len(first.wordings) > 4


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (("2024_holiday",), {}),
        (("01_front", "02_back"), {}),
        (("1_front", "2_back", "3_side"), {}),
        (("100_PANA",), {}),
        (("0_mug",), {}),
        (("5_", "7_ "), {}),
        (("40_sks mug",), {"40_sks mug": 40}),
        (("1_mug", "5_mug"), {"1_mug": 1, "5_mug": 5}),
        (("img/20_sks_mug",), {"img/20_sks_mug": 20}),
        (("20_mug/2024_more",), {"20_mug/2024_more": 20}),
    ],
)
def test_which_numbers_are_repeats(names: tuple[str, ...], weights: dict[str, int]) -> None:
    found = read(*(f"{name}/a.png" for name in names))
    assert found.weights == {f"{name}/a.png": weight for name, weight in weights.items()}
    if not weights and names != ("5_", "7_ "):
        assert "`folder_names` to repeats" in found.notes[0] and names[0] in found.notes[0]


def test_the_reader_can_be_told_otherwise_both_ways() -> None:
    assert read("10_mug/a.png", as_what="plain") == ({}, {}, frozenset(), (), ())
    assert read("01_front/a.png", as_what="repeats").weights == {"01_front/a.png": 1}
    too_many = read("2024_mug/a.png", as_what="repeats")
    assert not too_many.weights and "outside of the range of repeats" in too_many.notes[0]


def test_the_folder_itself_may_be_one_of_kohyas(tmp_path: Path) -> None:
    assert read("a.png", root="10_sks mug").captions == {"a.png": "sks mug"}
    found = audit(folders(tmp_path / "10_sks mug", ""))
    assert [e.caption for e in found.used] == ["sks mug", "sks mug"] and not found.problems


def test_underscores_are_spaces_unless_the_trigger_has_them() -> None:
    assert read("10_sks_mug/a.png").captions["10_sks_mug/a.png"] == "sks mug"
    assert read("10_sks_mug/a.png", trigger="sks_mug").captions["10_sks_mug/a.png"] == "sks_mug"


def test_class_images_of_kohya_beside_the_subject_are_a_problem(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "img/10_sks mug", "reg/1_mug")
    found = audit(root, trigger="sks", class_word="mug")
    assert any("reg holds kohya's regularisation (class) images" in p and "prior.path" in p for p in found.problems)
    with pytest.raises(DataError, match="regularisation"):
        prepare(root, tmp_path / "out", trigger="sks", class_word="mug")


# --- held out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "Val", "valid", "test"])
def test_pictures_in_a_folder_for_validation_are_held_out_and_stay_so(name: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "train", name)
    made = prepare(root, tmp_path / "out", trigger="sks", class_word="mug")
    held_out = {e.name: "train" not in e.name for e in made.examples}
    assert {e.name: e.attributes.held_out for e in made.examples} == held_out and sum(held_out.values()) == 2
    assert f"held out for validation, never trained on: 2 of 4 pictures, those in {name}" in made.understood[0]
    again = dataset.read_dataset(tmp_path / "out").examples
    assert {e.name: e.attributes.held_out for e in again} == held_out


@pytest.mark.parametrize(("names", "said"), [(("train",), ""), (("test", "more"), "no folder train"),
                                              (("val",), "nothing else would be left")])  # fmt: skip
def test_where_nothing_is_held_out_it_is_said_why(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    found = audit(folders(tmp_path / "in", *names), trigger="sks", class_word="mug")
    assert not any(e.attributes.held_out for e in found.used)
    assert said in " ".join(found.understood) and bool(said) == bool(found.understood)


def test_a_column_says_more_than_a_folder(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "10_mug", "val")
    (root / "metadata.csv").write_text("file_name;text;weight\n10_mug/00.png;a mug;3\n10_mug/01.png;a mug, red;\n"
                                       "val/10.png;a mug, left;\nval/11.png;a mug, right;\n")  # fmt: skip
    found = audit(root)
    assert [(e.attributes.weight, e.attributes.held_out) for e in found.used] == [(3, False), (10, False), (1, True),
                                                                                 (1, True)]  # fmt: skip
