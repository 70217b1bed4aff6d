"""Files of other trainers about a folder or a set: weights are read, the rest is named with what to write instead."""

import json
from pathlib import Path

import pytest
from support.sources import picture_bytes, prepared_from

from finetune.data.audit import Audit, audit


def folder(root: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture_bytes(n))
        (root / name).with_suffix(".txt").write_text(f"a mug {n}")
    return root


def checked(root: Path) -> Audit:
    report = audit(root, trigger="sks", class_word="mug")
    assert not report.rejected, report.rejected
    return report


def said(root: Path) -> list[str]:
    report = checked(root)
    assert not report.problems
    return list(report.understood)


@pytest.mark.parametrize("name", ["multiply.txt", "Multiply.txt", "multiply.txt.txt"])
def test_multiply_is_known_as_windows_writes_it(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path, "1.png", "2.png")
    (root / name).write_text("\ufeff2\r\n", encoding="utf-8")
    assert {e.attributes.weight for e in checked(root).used} == {2.0}


def test_multiply_is_the_weight_of_the_pictures_of_its_own_folder(tmp_path: Path) -> None:
    """EveryDream: it is not handed down to subfolders."""
    root = folder(tmp_path / "in", "a/1.png", "a/deep/2.png", "b/3.png")
    (root / "a" / "multiply.txt").write_text("2.5\n")
    report = checked(root)
    assert {e.name: e.attributes.weight for e in report.used} == {"a/1.png": 2.5, "a/deep/2.png": 1, "b/3.png": 1}
    assert report.understood == ("a/multiply.txt (EveryDream): 1 pictures of a have the weight 2.5",)
    assert (report.files, report.seen, report.captions) == (7, 3, 4)
    made, _ = prepared_from(root, tmp_path / "made")
    assert [e.attributes.weight for e in made.examples] == [2.5, 1, 1]


def test_a_weight_of_a_picture_goes_before_that_of_its_folder(tmp_path: Path) -> None:
    root = folder(tmp_path, "1.png", "2.png")
    rows = [{"file_name": "1.png", "text": "a mug 0", "weight": 7}, {"file_name": "2.png", "text": "a mug 1"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "multiply.txt").write_text("3")
    assert [e.attributes.weight for e in checked(root).used] == [7, 3]


@pytest.mark.parametrize("text", ["", "often", "0", "-1", "1001", "nan", "inf", "2 3"])
def test_what_is_no_weight_is_a_problem(tmp_path: Path, text: str) -> None:
    root = folder(tmp_path, "1.png")
    (root / "multiply.txt").write_text(text)
    (problem,) = checked(root).problems
    assert problem.startswith(f"multiply.txt holds {text!r}") and "a number above 0, up to 1000" in problem


def test_a_picture_of_that_name_keeps_its_caption(tmp_path: Path) -> None:
    root = folder(tmp_path, "multiply.png", "flip_p.png")
    report = checked(root)
    assert {e.name: e.caption for e in report.used} == {"multiply.png": "a sks mug 0", "flip_p.png": "a sks mug 1"}
    assert not report.understood


@pytest.mark.parametrize("name", ["flip_p.txt", "cond_dropout.txt", "shuffle_tags.txt", "local.yaml", "batch_id.txt"])
def test_other_files_of_everydream_are_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path, "a/1.png", "2.png")
    (root / "a" / name).write_text("0.5")
    (note,) = said(root)
    assert note.startswith(f"a/{name} is a setting of EveryDream, and is not read: ")


KOHYA = """[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1
[[datasets]]
resolution = 512
  [[datasets.subsets]]
  image_dir = "/data/in"
  class_tokens = "sks mug"
  num_repeats = 10
"""
PIPE = 'resolutions = [512]\n[[directory]]\npath = "/data/in"\nnum_repeats = 5\n'
CONCEPTS = [{"name": "mug", "path": "C:\\data\\in", "balancing": 3.0, "text": {"prompt_source": "sample",
             "enable_tag_shuffling": False, "keep_tags_count": 1}, "image": {"enable_random_flip": True}}]  # fmt: skip
BACKENDS = [{"id": "mug", "type": "local", "instance_data_dir": "/data/in", "caption_strategy": "instanceprompt",
             "instance_prompt": "a sks mug", "repeats": 4}]  # fmt: skip
YAML = """job: extension
config:
  process:
    - trigger_word: "sks"
      datasets:
        - folder_path: "/data/in"  # here
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          num_repeats: 1
          shuffle_tokens: false
"""
SETTINGS = {
    "dataset_config.toml": (KOHYA, "kohya's scripts", ["num_repeats 10: a weight of the source, as in photos:10",
        "class_tokens sks mug: a trigger and a class word", "shuffle_caption true: data.shuffle_tags",
        "keep_tokens 1: data.keep_tags = 1"]),
    "dataset.toml": (PIPE, "diffusion-pipe", ["num_repeats 5: a weight of the source, as in photos:5"]),
    "concepts.json": (json.dumps(CONCEPTS), "OneTrainer", ["balancing 3: a weight", "enable_random_flip true: "]),
    "multidatabackend.json": (json.dumps(BACKENDS), "SimpleTuner", ["repeats 4: a weight of the source, as in photos:5",
        "instance_prompt a sks mug: a template"]),
    "train.yaml": (YAML, "ai-toolkit", ["trigger_word sks: the trigger", "caption_dropout_rate 0.05: data.caption_d"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_set_in_the_folder_are_named_with_what_to_write_for_each(tmp_path: Path, name: str) -> None:
    text, whose, instead = SETTINGS[name]
    root = folder(tmp_path / "in", "1.png", "2.png")
    (root / name).write_text(text)
    (note,) = said(root)
    assert note.startswith(f"{name} holds settings of {whose}, and is not read; write for ")
    assert all(one in note for one in instead), note
    assert "num_repeats 1:" not in note and "false" not in note and ".txt" not in note
    made, _ = prepared_from(root, tmp_path / "made")
    assert len(made.examples) == 2 and not made.card.rejected


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "train.yaml"])
def test_so_they_are_beside_the_folder_where_they_name_it(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path / "in", "1.png")
    (tmp_path / name).write_text(SETTINGS[name][0])
    (note,) = said(root)
    assert note.startswith(f"{name} beside this folder holds settings of {SETTINGS[name][1]}")
    assert not said(folder(tmp_path / "other", "1.png"))


@pytest.mark.parametrize(
    "name, text",
    [
        ("captions.json", json.dumps([{"path": "1.png", "image": "1.png", "text": "a mug 0"}])),
        ("captions.json", json.dumps({"1.png": "a mug 0"})),
        ("notes.yaml", "folder_path: here\n"),
        ("1.yaml", YAML),
        ("pyproject.toml", "[project]\n"),
        ("broken.toml", "[[datasets"),
        ("broken.json", "[" * 100_000),
        ("1.png.json", json.dumps({"caption": "a mug 0"})),
        ("blank.yaml", "\n" * 500_000 + "a: " + " " * 400_000),
    ],
)
def test_other_files_are_what_they_were(tmp_path: Path, name: str, text: str) -> None:
    root = folder(tmp_path, "1.png")
    (root / name).write_text(text)
    assert not [note for note in audit(root, trigger="sks", class_word="mug").understood if "settings" in note]
