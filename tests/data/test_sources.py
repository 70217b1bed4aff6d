"""Several sources become one dataset: names tell the source, duplicates are found, weights multiply, links are safe."""

import errno
import json
import os
import tarfile
from pathlib import Path

import pytest
from support.sources import captioned_folder, picture_bytes, prepared_from, table_rows, write_parquet

from finetune import api
from finetune.data.dataset import read_dataset
from finetune.data.sources import links
from finetune.errors import DataError, RunError


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(made) -> list[str]:
    return [e.name.removeprefix("images/") for e in made.examples]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    captioned_folder(tmp_path / "photos", [1, 2])
    captioned_folder(tmp_path / "more", [3, 2, 4])
    return tmp_path


def test_a_single_folder_is_prepared_as_ever_to_the_byte(here):
    prepared_from(here / "photos", here / "one")
    for number, source in enumerate((str(here / "photos"), [here / "photos"], f"{here}/photos:1")):
        prepared_from(source, here / f"again{number}")
        assert tree(here / f"again{number}") == tree(here / "one")
    assert set(tree(here / "one")) == {"images/1.jpg", "images/2.jpg", "metadata.jsonl", "dataset.toml"}


def test_all_pictures_of_all_sources_are_there_and_a_duplicate_is_named_with_both(here):
    write_parquet(here / "t.parquet", table_rows([7, 8]))
    with tarfile.open(here / "a.tar", "w") as archive:
        captioned_folder(here / "fifth", [5])
        for name in ("photos/1.jpg", "photos/1.txt", "more/4.jpg", "fifth/5.jpg", "fifth/5.txt"):
            archive.add(here / name, name)
    sources = [here / "photos", str(here / "more"), str(here / "t.parquet"), here / "a.tar"]
    made, _ = prepared_from(sources, here / "made")
    assert names(made) == [
        "a/fifth/5.jpg", "more/3.jpg", "more/4.jpg", "photos/1.jpg", "photos/2.jpg", "t/000000-bell7.png",
        "t/000001-bell8.png",
    ]  # fmt: skip
    assert [(r.file, r.reason, r.detail) for r in made.card.rejected] == [
        ("a/more/4.jpg", "exact duplicate", "the same bytes as more/4.jpg"),
        ("a/photos/1.jpg", "exact duplicate", "the same bytes as photos/1.jpg"),
        ("more/2.jpg", "exact duplicate", "the same bytes as photos/2.jpg"),
    ]  # fmt: skip
    assert made.card.seen == 10 == len(made.examples) + 3
    assert [p.name for p in here.iterdir() if p.name.startswith(".")] == []


def test_the_same_pixels_in_two_sources_are_found(here):
    (here / "bmp").mkdir()
    (here / "png").mkdir()
    (here / "bmp" / "a.bmp").write_bytes(picture_bytes(9, "BMP"))
    (here / "png" / "b.png").write_bytes(picture_bytes(9))
    (here / "png" / "c.png").write_bytes(picture_bytes(10))
    made, _ = prepared_from([here / "bmp", here / "png"], here / "made", captions_from="none")
    assert names(made) == ["bmp/a.png", "png/c.png"]
    assert made.card.rejected[0].detail == "the same pixels as bmp/a.bmp"


def test_a_source_without_an_image_of_its_own_is_refused_with_what_to_do(here):
    """Its captions and its weight would be lost without a word."""
    first, again = here / "more", here / "photos"
    (again / "1.jpg").write_bytes((first / "4.jpg").read_bytes())
    with pytest.raises(DataError) as refused:
        prepared_from([first, f"{again}:3"], here / "made")
    assert refused.value.problem == f"all images of {again} are also in {first} (2)"
    assert f"leave {again} out, or name it before {first}" in refused.value.hint and not (here / "made").exists()
    (again / "odd.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=rf"all usable images of {again} are also in {first} \(2\)"):
        prepared_from([first, again], here / "made")
    (again / "odd.jpg").unlink()
    made, _ = prepared_from([f"{again}:3", first], here / "made")  # as the advice says
    assert [(e.name, e.attributes.weight) for e in made.examples] == [
        ("images/more/3.jpg", 1), ("images/photos/1.jpg", 3), ("images/photos/2.jpg", 3),
    ]  # fmt: skip
    left_out, _ = prepared_from(first, here / "alone")
    assert len(left_out.examples) == 3


def test_a_source_that_repeats_several_names_each(here):
    both = captioned_folder(here / "both", [1, 3])
    archive = here / "both.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(both, "both")
    with pytest.raises(DataError, match=rf"all images of {archive} are also in {here}/photos and {here}/more \(2\)"):
        prepared_from([here / "photos", here / "more", archive], here / "made")


def test_captions_of_each_source_keep_their_origin(here):
    (here / "bare").mkdir()
    (here / "bare" / "IMG_1.png").write_bytes(picture_bytes(20))
    made, _ = prepared_from([here / "photos", here / "bare"], here / "made")
    assert [e.origin for e in made.examples] == ["template", "written", "written"]
    assert made.card.captions == "several sources"


def test_a_problem_is_told_with_its_source_and_nothing_is_written(here):
    (here / "more" / "3.txt").unlink()
    with pytest.raises(DataError, match="more: 1 of 2 images have no caption") as refused:
        prepared_from([here / "photos", here / "more"], here / "made")
    assert refused.value.problem.startswith(f"{here}/photos, {here}/more: ") and not (here / "made").exists()


def test_weights_of_sources_and_of_pictures_are_multiplied(here):
    (here / "more" / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n}.jpg", "text": f"mug {n}", "weight": w}) + "\n"
                for n, w in ((3, 1), (2, 5), (4, 0.1)))
    )  # fmt: skip
    for file in (here / "more").glob("*.txt"):
        file.unlink()
    made, _ = prepared_from([f"{here}/photos:2", f"{here}/more:3"], here / "made")
    assert [e.attributes.weight for e in made.examples] == [3, 0.3, 2, 2]
    assert [e.attributes.weight for e in read_dataset(here / "made").examples] == [3, 0.3, 2, 2]


def test_weights_that_are_too_large_together_are_refused(here):
    (here / "photos" / "1.txt").unlink()
    (here / "photos" / "2.txt").unlink()
    rows = [{"file_name": f"{n}.jpg", "text": "mug", "weight": 900} for n in (1, 2)]
    (here / "photos" / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match="together more than 1000"):
        prepared_from(f"{here}/photos:2", here / "made")


def test_prepared_sources_must_go_together(here):
    prepared_from(here / "photos", here / "ready")
    made, _ = prepared_from([here / "ready", here / "more"], here / "made")
    assert made.trigger == "sks" and len(made.examples) == 4
    with pytest.raises(DataError, match="`trigger` is 'sks', none") as refused:
        prepared_from([here / "ready", here / "more"], here / "no", trigger=None, class_word=None)
    assert "give the raw folders the" in refused.value.hint


def test_out_may_lie_in_none_of_the_sources(here):
    with pytest.raises(DataError, match="lies inside"):
        prepared_from([here / "photos", here / "more"], here / "more" / "made")


def test_python_takes_one_source_or_several(here):
    one = api.prepare(here / "photos", here / "one", trigger="sks", class_word="mug")
    write_parquet(here / "t.parquet", table_rows([7, 8], score=1))
    several = api.prepare([here / "photos", f"{here}/t.parquet:2"], here / "several", trigger="sks", class_word="mug",
                          where=["score == 1"], limit=1, link=True)  # fmt: skip
    assert (len(one.examples), len(several.examples)) == (2, 3)


# --- links ----------------------------------------------------------------------------------------------------------


def test_linked_pictures_are_a_second_name_of_the_source_and_others_are_written(here):
    (here / "photos" / "5.bmp").write_bytes(picture_bytes(5, "BMP"))
    (here / "photos" / "5.txt").write_text("a mug")
    before = tree(here / "photos")
    made, notes = prepared_from(here / "photos", here / "made", link=True)
    assert (here / "made/images/1.jpg").samefile(here / "photos/1.jpg")
    assert not (here / "made/images/1.jpg").is_symlink() and (here / "made/images/5.png").stat().st_nlink == 1
    assert notes == ["2 of 3 images are hard links to the files of their source; the other 1 had to be converted"]
    copied, _ = prepared_from(here / "photos", here / "copied")
    assert tree(here / "made") == tree(here / "copied") and made.fingerprint == copied.fingerprint
    assert tree(here / "photos") == before


def test_a_dataset_of_links_can_be_removed_and_the_source_stays(here):
    before = tree(here / "photos")
    made, _ = prepared_from(here / "photos", here / "made", link=True)
    for file in made.root.rglob("*.jpg"):
        file.unlink()
    assert tree(here / "photos") == before


def test_a_link_inside_of_the_source_is_linked_to_its_file(here):
    (here / "photos" / "1.jpg").rename(here / "photos" / "kept")
    (here / "photos" / "1.txt").rename(here / "photos" / "kept.txt")
    os.symlink("kept", here / "photos" / "1.jpg")
    prepared_from(here / "photos", here / "made", link=True)
    assert all(not p.is_symlink() for p in (here / "made").rglob("*"))


def test_where_no_link_can_be_made_nothing_is_written_and_what_to_do_is_said(here, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(links.os, "link", refused)
    with pytest.raises(RunError, match=r"cannot link .*1.jpg into the dataset: Invalid cross-device link") as told:
        prepared_from(here / "photos", here / "made", link=True)
    assert "leave `link` out" in told.value.hint and not (here / "made").exists()
    made, _ = prepared_from(here / "photos", here / "made")
    assert len(made.examples) == 2


def test_a_file_that_changes_between_the_look_and_the_link_is_noticed(here, monkeypatch):
    link = os.link

    def changed(source: Path, target: Path) -> None:
        Path(source).write_bytes(picture_bytes(99, "JPEG"))
        link(source, target)

    monkeypatch.setattr(links.os, "link", changed)
    with pytest.raises(DataError, match="the file has changed since it was checked"):
        prepared_from(here / "photos", here / "made", link=True)
