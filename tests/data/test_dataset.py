"""Folders of pictures: every file used or rejected with its reason, prepared whole, and read back the same."""

import hashlib
import json
import os
import random
import re
import shlex
from pathlib import Path

import pytest
import typer
from support.nasty_folder import build, cut_out, encoded, picture, turned, write_jsonl
from typer.main import get_command
from typer.testing import CliRunner, Result

from finetune.cli import app, data
from finetune.cli.wording import written
from finetune.data import dataset, folder
from finetune.data.audit import audit
from finetune.data.images import decode
from finetune.data.prepare import prepare
from finetune.data.text.caption_files import TABLE
from finetune.errors import DataError, RunError, action


def finetune(*args: object) -> Result:
    app = typer.Typer()
    data.register(app)
    return CliRunner().invoke(app, [str(a) for a in args])


def state(root: Path) -> dict[str, tuple[str, int]]:
    """Every file's content and time of change."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


# --- the nasty folder -----------------------------------------------------------------------------------------------


def test_every_file_of_a_nasty_folder_is_used_or_rejected_with_its_reason(tmp_path: Path) -> None:
    expected = build(tmp_path / "nasty")
    found = audit(tmp_path / "nasty", trigger="sks", class_word="mug")
    assert {r.file: r.reason for r in found.rejected} == expected.rejected
    assert {e.name for e in found.used} == set(expected.used)
    assert all(r.detail for r in found.rejected)


def test_the_counts_of_a_nasty_folder_add_up_to_its_40_files(tmp_path: Path) -> None:
    expected = build(tmp_path / "nasty")
    found = audit(tmp_path / "nasty", trigger="sks", class_word="mug")
    on_disk = [p for p in (tmp_path / "nasty").rglob("*") if not p.is_dir()]
    assert len(on_disk) == found.files == 40
    assert found.files == found.seen + found.captions + len(found.ignored)
    assert found.seen == len(found.used) + len(found.rejected) == 36
    assert set(found.ignored) == expected.ignored and found.captions == len(expected.captions)


def test_what_is_done_to_a_used_file_is_noted(tmp_path: Path) -> None:
    expected = build(tmp_path / "nasty")
    found = audit(tmp_path / "nasty", trigger="sks", class_word="mug")
    for name, phrase in expected.used.items():
        noted = {n.text for n in found.notes if n.file == name}
        assert (phrase in noted) if phrase else not noted, (name, noted)


def test_a_duplicate_names_its_twin(tmp_path: Path) -> None:
    build(tmp_path / "nasty")
    found = audit(tmp_path / "nasty", trigger="sks")
    (twin,) = (r for r in found.rejected if r.reason == "exact duplicate")
    assert twin.file == "sub/plain copy.jpg" and "plain.jpg" in twin.detail


def test_check_says_it_as_json_and_exits_2(tmp_path: Path) -> None:
    expected = build(tmp_path / "nasty")
    result = finetune("check", tmp_path / "nasty", "--trigger", "sks", "--class-word", "mug", "--json")
    assert isinstance(result.exception, DataError) and result.exception.exit_code == 2
    said = json.loads(result.stdout)
    assert said["seen"] == said["used"] + len(said["rejected"]) == 36
    assert {r["file"]: r["reason"] for r in said["rejected"]} == expected.rejected
    assert said["trigger"] == {"trigger": "sks", "with": 19, "of": 19}
    assert {"file", "caption", "width", "height", "bucket", "crop_loss", "tokens", "truncated"} <= set(
        said["images"][0]
    )


def test_preparing_a_nasty_folder_keeps_every_usable_image_and_records_the_rest(tmp_path: Path) -> None:
    expected = build(tmp_path / "nasty")
    before = state(tmp_path / "nasty")
    made = prepare(tmp_path / "nasty", tmp_path / "out", trigger="sks", class_word="mug")
    assert state(tmp_path / "nasty") == before
    assert len(made.examples) == len(expected.used)
    assert {r.file: r.reason for r in made.card.rejected} == expected.rejected
    again = audit(tmp_path / "out")
    assert not again.problems and not again.rejected and not again.notes
    written = (tmp_path / "out" / "dataset.toml").read_text(encoding="utf-8")
    assert str(tmp_path) not in written and os.uname().nodename not in written


# --- folders that are wrong as a whole ------------------------------------------------------------------------------


def test_a_folder_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        dataset.read_dataset(tmp_path / "empty")
    (tmp_path / "empty" / "notes.md").write_text("hello")
    with pytest.raises(DataError, match=r"all of its files were rejected \(1\)(.|\n)*notes\.md"):
        dataset.read_dataset(tmp_path / "empty")


def test_a_path_that_is_no_folder_says_what_is_there(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(DataError, match="no folder") as caught:
        dataset.read_dataset(tmp_path / "fotos")
    assert "photos" in caught.value.hint
    with pytest.raises(DataError, match="is a file"):
        dataset.read_dataset(photos / "0.jpg")


def test_a_raw_folder_is_never_trained_on_less_one_file(photos: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"bad\.jpg: zero bytes") as caught:
        dataset.read_dataset(photos, trigger="sks", class_word="mug")
    assert "prepare" in caught.value.hint


def test_links_inside_are_duplicates_and_a_pipe_is_not_waited_for(photos: Path) -> None:
    (photos / "a_link.jpg").symlink_to(photos / "0.jpg")
    (photos / "gone.jpg").symlink_to(photos / "nothing")
    (photos / "folder").symlink_to(photos.parent)
    os.mkfifo(photos / "pipe.jpg")
    found = audit(photos, trigger="sks")
    reasons = {r.file: r.reason for r in found.rejected}
    assert reasons == {"a_link.jpg": "exact duplicate", "gone.jpg": "link", "folder": "link", "pipe.jpg": "unreadable"}
    assert found.seen == 8 and len(found.used) == 4


def test_a_name_that_is_not_text_is_rejected_not_a_traceback(photos: Path) -> None:
    Path(os.fsdecode(bytes(photos) + b"/caf\xe9.jpg")).write_bytes(encoded(picture(9), "JPEG"))
    result = finetune("check", photos, "--trigger", "sks", "--json")
    assert json.loads(result.stdout)["rejected"][0]["file"] == r"caf\xe9.jpg"


# --- prepared -------------------------------------------------------------------------------------------------------


def test_a_prepared_dataset_reads_back_what_was_audited(photos: Path, tmp_path: Path) -> None:
    (photos / "4.jpg").write_bytes(turned(picture(4), 6))
    (photos / "5.png").write_bytes(encoded(cut_out(5), "PNG"))
    raw = audit(photos, trigger="sks", class_word="mug")
    made = prepare(
        photos, tmp_path / "a/b/mug", trigger="sks", class_word="mug", kind="product", license="CC0", source_note="me"
    )
    assert [e.name for e in made.examples] == [f"images/{i}.jpg" for i in range(4)] + ["images/4.png", "images/5.png"]
    assert [e.caption for e in made.examples] == [e.caption for e in raw.used]
    assert [e.size for e in made.examples] == [e.size for e in raw.used]
    assert [e.digest for e in made.examples][:4] == [e.digest for e in raw.used][:4]
    for before, after in zip(raw.used, made.examples, strict=True):
        assert decode.open_rgb(before.path).tobytes() == decode.open_rgb(after.path).tobytes()
    assert (made.trigger, made.class_word, made.kind, made.license, made.source) == (
        "sks",
        "mug",
        "product",
        "CC0",
        "me",
    )
    assert made.prepared and made.coverage == (6, 6)
    assert made.card.changes == {"EXIF rotation applied": 1, "alpha composited on white": 1}
    assert dataset.read_dataset(tmp_path / "a/b/mug", trigger="sks", class_word="mug").fingerprint == made.fingerprint


def test_the_fingerprint_is_of_images_and_captions_only(photos: Path, tmp_path: Path) -> None:
    raw = dataset.read_dataset(photos, trigger="sks", class_word="mug")
    made = prepare(photos, tmp_path / "out", trigger="sks", class_word="mug", license="CC0")
    assert raw.fingerprint == made.fingerprint
    assert dataset.read_dataset(photos, trigger="zwx", class_word="mug").fingerprint != raw.fingerprint


def test_datasets_loads_a_prepared_folder_whole(photos: Path, tmp_path: Path) -> None:
    import datasets

    for odd in ("train-1.jpg", "test.jpg", "__x/val 3.jpg", "a.JPG", "A.jpg", "sub/a.jpg"):
        (photos / odd).parent.mkdir(exist_ok=True)
        (photos / odd).write_bytes(encoded(picture(len(odd) * 7 + ord(odd[0])), "JPEG"))
    (photos / "cut.gif").write_bytes(encoded(picture(50).quantize(8), "GIF"))
    made = prepare(photos, tmp_path / "out", trigger="sks", class_word="mug")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert sorted(loaded["train"]["text"]) == sorted(e.caption for e in made.examples)
    sizes = sorted((e.caption, *e.size) for e in made.examples)
    assert sorted((row["text"], *row["image"].size) for row in loaded["train"]) == sizes
    assert len({e.name.casefold() for e in made.examples}) == 11  # a Mac's disk would merge a.jpg and A.jpg


def test_prepare_refuses_a_folder_that_holds_something_and_leaves_it(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        prepare(photos, out, trigger="sks", class_word="mug")
    assert [p.name for p in out.iterdir()] == ["precious"]
    (out / "precious").unlink()
    prepare(photos, out, trigger="sks", class_word="mug")
    with pytest.raises(DataError, match="lies inside"):
        prepare(photos, photos / "out", trigger="sks", class_word="mug")


def test_a_prepare_that_fails_leaves_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        prepare(photos, tmp_path / "out", trigger="sks", class_word="mug")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_problems_stop_prepare_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    (photos / "0.txt").write_text("a mug")
    with pytest.raises(DataError, match="3 of 4 images have no caption"):
        prepare(photos, tmp_path / "out", trigger="sks", class_word="mug")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [{"trigger": "zwx"}, {"class_word": "cup"}])
def test_another_trigger_than_the_prepared_one_is_refused_naming_both(
    asked: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    prepare(photos, tmp_path / "out", trigger="sks", class_word="mug")
    ((name, word),) = asked.items()
    with pytest.raises(DataError, match=f"'{word}'.*'{'sks' if name == 'trigger' else 'mug'}'"):
        dataset.read_dataset(tmp_path / "out", **asked)  # type: ignore[arg-type]


def test_a_trigger_edited_out_of_every_caption_is_an_error_and_out_of_some_a_note(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(photos, out, trigger="sks", class_word="mug")
    write_jsonl(out / "metadata.jsonl", {f"images/{i}.jpg": "a photo of a mug" if i else "a sks mug" for i in range(4)})
    found = audit(out)
    assert not found.problems and found.coverage == (1, 4) and len(found.notes) == 3
    write_jsonl(out / "metadata.jsonl", {f"images/{i}.jpg": "a photo of a mug" for i in range(4)})
    with pytest.raises(DataError, match=r"'sks'.*occurs in no caption"):
        dataset.read_dataset(out)


def test_strays_and_missing_files_of_a_prepared_folder_are_named(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(photos, out, trigger="sks", class_word="mug")
    (out / "images" / "stray.jpg").write_bytes(encoded(picture(9), "JPEG"))
    with pytest.raises(DataError, match=r"1 images are not in metadata\.jsonl: images/stray\.jpg"):
        dataset.read_dataset(out)
    (out / "images" / "stray.jpg").rename(out / "images" / "0.jpg")
    assert len(dataset.read_dataset(out).examples) == 4
    (out / "images" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"images/0\.jpg"):
        dataset.read_dataset(out)


@pytest.mark.parametrize("text", ["format = 2\n", "not toml", "format = 1\nunknown = 3\n"])
def test_a_dataset_toml_that_is_not_ours_is_named(text: str, photos: Path) -> None:
    (photos / "dataset.toml").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.toml"):
        dataset.read_dataset(photos)


# --- the commands ---------------------------------------------------------------------------------------------------


def test_prepare_then_check_passes_and_says_what_was_done(photos: Path, tmp_path: Path) -> None:
    (photos / "4.png").write_bytes(encoded(cut_out(4), "PNG"))
    (photos / "broken.jpg").write_bytes(b"")
    made = finetune(
        "prepare",
        photos,
        "--out",
        tmp_path / "out",
        "--trigger",
        "sks",
        "--class-word",
        "mug",
        "--background",
        "#102030",
    )
    assert made.exit_code == 0, made.output
    assert "seen 6 = used 5 + rejected 1" in made.output and "broken.jpg: zero bytes" in made.output
    assert "alpha composited on #102030: 1 image" in made.output
    checked = finetune("check", tmp_path / "out")
    assert checked.exit_code == 0, checked.output
    assert "trigger 'sks' in 5 of 5 captions" in checked.output
    assert decode.open_rgb(tmp_path / "out/images/4.png").getpixel((0, 0)) == (16, 32, 48)


def test_check_shows_the_caption_the_size_and_the_bucket_of_each_image(photos: Path) -> None:
    result = finetune("check", photos, "--trigger", "sks", "--class-word", "mug", "--resolution", 64)
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith("0.jpg"))
    assert "a photo of sks mug" in row and "96x64" in row and "80x48" in row and "10%" in row


def test_check_counts_tokens_and_shows_what_truncation_loses(photos: Path) -> None:
    for i in range(4):
        (photos / f"{i}.txt").write_text("a red mug on a table " * (1 + 9 * (i == 2)))
    said = json.loads(finetune("check", photos, "--base", "pocket", "--json").stdout)
    assert (said["resolution"], said["stride"]) == (64, 16)
    assert [bool(image["truncated"]) for image in said["images"]] == [False, False, True, False]
    assert all(image["tokens"] >= 8 for image in said["images"])
    assert "is lost" in said["notes"][-1]["text"]


def test_the_command_that_check_tries_next_settles_its_one_problem(photos: Path, tmp_path: Path) -> None:
    spaced = photos.rename(tmp_path / "my photos")
    result = finetune("check", spaced)
    assert isinstance(result.exception, DataError) and "(empty)" in result.output
    step = result.exception.action
    assert step is not None
    _, *command = shlex.split(written(step, get_command(app)))
    assert command == ["check", str(spaced), "--trigger", "sks", "--class-word", "mug"]
    assert finetune(*command).exit_code == 0
    assert "your own trigger and class word" in result.exception.hint
    with pytest.raises(DataError) as trained:
        dataset.read_dataset(spaced)
    assert (trained.value.hint, trained.value.action) == (result.exception.hint, step)


def test_one_problem_in_the_folder_is_checked_again_with_the_same_words(photos: Path) -> None:
    (photos / "0.txt").write_text("a mug")
    result = finetune("check", photos, "--trigger", "my sks", "--class-word", "mug")
    assert isinstance(result.exception, DataError)
    assert result.exception.action == action("check", path=photos, trigger="my sks", class_word="mug")
    made = prepare(photos, photos.parent / "out", trigger="sks", allow_uncaptioned=True)
    rows = (made.root / TABLE).read_text().splitlines(keepends=True)
    (made.root / TABLE).write_text("".join(rows[:-1]))
    with pytest.raises(DataError, match="1 problem\n") as caught:
        dataset.read_dataset(made.root)
    assert caught.value.action == action("check", path=made.root)


def test_a_folder_without_images_is_not_told_to_declare_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = finetune("check", tmp_path / "empty")
    assert isinstance(result.exception, DataError)
    assert result.exception.action == action("check", path=tmp_path / "empty")


def test_small_images_are_noted_as_upscaled(photos: Path) -> None:
    said = json.loads(finetune("check", photos, "--trigger", "sks", "--json").stdout)
    assert {n["text"] for n in said["notes"]} >= {"upscaled 6.0 times"}


@pytest.mark.parametrize("wrong", [("--kind", "logo"), ("--background", "greenish")])
def test_a_wrong_choice_is_named(wrong: tuple[str, str], photos: Path, tmp_path: Path) -> None:
    result = finetune("prepare", photos, "--out", tmp_path / "out", "--trigger", "sks", *wrong)
    assert result.exit_code == (2 if wrong[0] == "--kind" else 1)
    assert wrong[1] in (result.output if wrong[0] == "--kind" else result.exception.problem)


def test_numbers_in_names_are_in_their_order_and_the_rest_as_letters_are() -> None:
    def by_parts(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

    chance = random.Random(0)
    names = sorted({"".join(chance.choices("ab0129 /.\u00e4\u0663", k=chance.randrange(9))) for _ in range(3000)})
    assert sorted(names, key=folder.natural) == sorted(names, key=by_parts)
    assert sorted(["img10", "img2", "img"], key=folder.natural) == ["img", "img2", "img10"]
