"""Whose pictures are goes with them: from files and columns, through what was asked for, to what others are told."""

import json
import shutil
from pathlib import Path

import pytest
from support.nasty_folder import picture, write_jsonl
from support.sources import prepared_from

import finetune
from finetune.data.attributes import Attributes
from finetune.data.audit import Audit, audit
from finetune.data.dataset import read_dataset
from finetune.data.prepare import prepare
from finetune.data.rights.licence_files import licence_told
from finetune.data.rights.licences import Rights
from finetune.data.rights.provenance import bounded, credit_lines, in_words, public_author, public_source, sums
from finetune.errors import DataError
from finetune.recipe import Recipe

WORDS = {"trigger": "sks", "class_word": "mug"}
REUSE = "SPDX-FileCopyrightText: 2021-2024 Ada Lovelace <ada@example.org>\n\nSPDX-License-Identifier: CC-BY-4.0\n"


def folder(root: Path, count: int = 4) -> Path:
    root.mkdir(parents=True)
    for n in range(count):
        picture(n).save(root / f"{n}.png")
        (root / f"{n}.txt").write_text(f"a mug, number {n}")
    return root


def licensed(report: Audit) -> dict[str, tuple[str, str]]:
    return {e.name: (e.attributes.license, e.attributes.author) for e in report.used}


def test_a_licence_lies_beside_its_picture_with_or_without_its_ending(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos")
    (root / "0.png.license").write_text(REUSE)
    (root / "1.license").write_text("CC0\n")
    report = audit(root, **WORDS)
    assert licensed(report) == {
        "0.png": ("CC-BY-4.0", "Ada Lovelace <ada@example.org>"), "1.png": ("CC0-1.0", ""), "2.png": ("", ""),
        "3.png": ("", ""),
    }  # fmt: skip
    assert report.seen == 4 and report.captions == 6 and not report.rejected and not report.problems
    assert "the licence 'CC0' is read as CC0-1.0: 1.png" in [note.text for note in report.notes]
    (root / "2.license").write_text("CC BY 4.0")
    nameless = "its licence requires attribution, but no author is recorded: 2.png"
    assert nameless in [note.text for note in audit(root, **WORDS).notes]


def test_columns_say_it_too_also_under_other_names_and_what_contradicts_them_is_a_problem(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    rows = [{"licence": "CC BY 4.0", "photographer": "Ada"}, {"license": "MIT", "creator": "Bob", "source_url": "x"}]
    for n in range(2):
        picture(n).save(root / f"{n}.png")
    table = [{"file_name": f"{n}.png", "text": f"a mug, number {n}"} | row for n, row in enumerate(rows)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    report = audit(root, **WORDS)
    assert licensed(report) == {"0.png": ("CC-BY-4.0", "Ada"), "1.png": ("MIT", "Bob")}
    assert report.used[1].attributes.source == "x"
    (root / "1.png.license").write_text("SPDX-License-Identifier: Apache-2.0")
    assert "two licences for 1.png: MIT and, in its licence file, Apache-2.0; keep one" in audit(root, **WORDS).problems


@pytest.mark.parametrize(
    "text, said",
    [
        ("SPDX-Licence-Identifier: MIT", "SPDX-Licence-Identifier is not a tag of a licence file"),
        ("Ada took these\nand so did Bob", "it names no licence; add a line such as SPDX-License-Identifier"),
        ("", "it names no licence"),
    ],
)
def test_a_licence_file_that_is_not_understood_is_a_problem_with_what_to_write(
    text: str, said: str, tmp_path: Path
) -> None:
    root = folder(tmp_path / "photos")
    (root / "2.license").write_text(text)
    [problem] = audit(root, **WORDS).problems
    assert problem.startswith("2.license: ") and said in problem
    (root / "2.license").unlink()
    (root / "9.license").write_text("MIT")
    [rejected] = audit(root, **WORDS).rejected
    assert rejected == ("9.license", "licence without image", "there is no file 9 beside it")


def test_several_licences_in_one_file_hold_together_and_years_are_no_part_of_a_name() -> None:
    text = "# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: CC0-1.0 OR CC-BY-4.0\n"
    text += "© 2020, 2022 Ada\nCopyright Bob"
    assert licence_told(text) == {"license": "MIT AND (CC0-1.0 OR CC-BY-4.0)", "author": "Ada; Bob"}


def test_only_the_licences_asked_for_are_used_the_rest_is_rejected_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", 5)
    (root / "0.license").write_text(REUSE)
    (root / "1.license").write_text("CC BY-NC 4.0")
    (root / "2.license").write_text("Our own terms")
    (root / "3.license").write_text("CC0-1.0 OR CC-BY-NC-4.0")
    made = prepare(root, tmp_path / "out", require_license=["cc-by-*,CC0"], author="The agency", **WORDS)
    assert {e.name: (e.attributes.license, e.attributes.author) for e in made.examples} == {
        "images/0.png": ("CC-BY-4.0", "Ada Lovelace <ada@example.org>"),
        "images/3.png": ("CC0-1.0 OR CC-BY-NC-4.0", "The agency"),
    }
    asked = "required is CC-BY-* or CC0-1.0"
    assert [tuple(r) for r in made.card.rejected] == [
        ("1.png", "licence", f"its licence is CC-BY-NC-4.0; {asked}"),
        ("2.png", "licence", f"its licence is Our own terms; {asked}"),
        ("4.png", "licence", f"it has no licence; {asked}"),
    ]
    assert made.card.require_license == ("CC-BY-*", "CC0-1.0") and made.card.seen == 5
    assert made.card.licenses == {"CC-BY-4.0": 1, "CC0-1.0 OR CC-BY-NC-4.0": 1}


def test_a_picture_without_the_licence_makes_no_duplicate_of_the_same_one_with_it(tmp_path: Path) -> None:
    folder(tmp_path / "taken", 3)
    folder(tmp_path / "bought", 2)
    shutil.copy(tmp_path / "bought/0.png", tmp_path / "bought/again.png")
    for name in ("taken/2.png", "bought/0.png", "bought/1.png"):
        (tmp_path / f"{name}.license").write_text("SPDX-License-Identifier: CC0-1.0")
    out = tmp_path / "out"
    made = prepare([tmp_path / "taken", tmp_path / "bought"], out, require_license=["CC0-1.0"], **WORDS)
    assert [e.name for e in made.examples] == [f"images/{n}.png" for n in ("bought/0", "bought/1", "taken/2")]
    told = {rejected.file: rejected.reason for rejected in made.card.rejected}
    assert told == dict.fromkeys(["taken/0.png", "taken/1.png", "bought/again.png"], "licence")


def test_one_licence_for_all_counts_for_those_that_have_none(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos")
    (root / "0.license").write_text("CC BY-NC 4.0")
    made = prepare(root, tmp_path / "out", license="CC0", require_license=["CC0-1.0"], **WORDS)
    assert {e.attributes.license for e in made.examples} == {"CC0-1.0"} and len(made.examples) == 3
    free = prepare(root, tmp_path / "free", license="CC0", **WORDS)
    assert [e.attributes.license for e in free.examples] == ["CC-BY-NC-4.0", "", "", ""], "rows hold what is their own"
    assert in_words(free.licenses) == "3 pictures CC0-1.0, 1 CC-BY-NC-4.0"


def test_one_licence_for_all_that_asks_to_name_the_author_is_told_where_nobody_is(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", 2)
    told = "its licence requires attribution, but no author is recorded: 0.png, 1.png"
    assert told in prepared_from(root, tmp_path / "out", license="CC BY 4.0")[1]
    assert prepared_from(root, tmp_path / "named", license="CC BY 4.0", author="Ada")[1] == []


def test_a_dataset_that_licences_were_asked_for_keeps_that_promise_when_it_is_trained_on(tmp_path: Path) -> None:
    """Files, and rows without a licence, that are put in by hand, are refused; and so are class images."""
    out = tmp_path / "out"
    prepare(folder(tmp_path / "photos"), out, license="CC0-1.0", require_license=["CC0-1.0"], **WORDS)
    recipe = Recipe(base="pocket", data={"path": out})
    assert len(finetune.plan(recipe).train.placed) == 4
    table = (out / "metadata.jsonl").read_text()
    picture(9).save(out / "images" / "9.png")
    with pytest.raises(DataError, match=r"images/9.png: licence: it has no licence; required is CC0-1.0"):
        finetune.plan(recipe)
    row = {"file_name": "images/9.png", "text": "a sks mug by hand"}
    (out / "metadata.jsonl").write_text(table + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"images/9.png: licence: it has no licence; required is CC0-1.0"):
        finetune.plan(recipe)
    (out / "metadata.jsonl").write_text(table + json.dumps(row | {"license": "MIT"}) + "\n")
    with pytest.raises(DataError, match=r"its licence is MIT; required is CC0-1.0"):
        finetune.plan(recipe)
    (out / "metadata.jsonl").write_text(table + json.dumps(row | {"license": "cc0"}) + "\n")
    assert len(finetune.plan(recipe).train.placed) == 5


def test_class_images_keep_the_promise_too(tmp_path: Path) -> None:
    out, classes = tmp_path / "out", tmp_path / "classes"
    prepare(folder(tmp_path / "photos"), out, license="CC0-1.0", require_license=["CC0-1.0"], **WORDS)
    classes.mkdir()
    picture(77).save(classes / "a.png")
    with_prior = Recipe(base="pocket", data={"path": out}, prior={"mode": "images", "path": classes})
    with pytest.raises(DataError, match=r"1 class images have none of the licences .* \(CC0-1.0\): a.png"):
        finetune.plan(with_prior)
    (classes / "a.license").write_text("CC0")
    plan = finetune.plan(with_prior)
    assert plan.prior is not None and plan.prior.placed[0].example.attributes.license == "CC0-1.0"


def test_a_licence_that_nobody_knows_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`require_license`: 'CC-BI-4.0' is not a known licence") as refused:
        prepare(folder(tmp_path / "photos"), tmp_path / "out", require_license=["CC-BI-4.0"], **WORDS)
    assert "SPDX" in refused.value.hint and not (tmp_path / "out").exists()


def test_datasets_without_licences_are_what_they_were(tmp_path: Path) -> None:
    """Rows and fingerprint; a licence for all is in dataset.toml alone."""
    root = folder(tmp_path / "photos")
    plain, owned = prepare(root, tmp_path / "a", **WORDS), prepare(root, tmp_path / "b", license="CC0-1.0", **WORDS)
    assert (tmp_path / "a/metadata.jsonl").read_text() == (tmp_path / "b/metadata.jsonl").read_text()
    assert plain.fingerprint == owned.fingerprint and read_dataset(tmp_path / "b").license == "CC0-1.0"
    assert in_words(plain.licenses) == "" and plain.card.licenses == {} and owned.card.licenses == {"CC0-1.0": 4}


ATTRIBUTES = [
    *[Attributes(license="CC-BY-4.0", author="Ada", source=f"https://example.org/{n}") for n in range(5)],
    Attributes(license="CC-BY-4.0", author="Bob <bob@example.org>"),
    *[Attributes(license="LicenseRef-Proprietary")] * 3,
    Attributes(),
]


def test_sums_say_how_many_pictures_have_which_licence_and_whose_they_are() -> None:
    found = sums(ATTRIBUTES, Rights())
    assert in_words(found) == "6 pictures CC-BY-4.0 (Ada, Bob), 3 Proprietary, 1 without a licence"
    assert sum(one.pictures for one in found) == len(ATTRIBUTES)
    many = sums([Attributes(license="CC-BY-4.0", author=f"A{n}") for n in range(8)], Rights())
    assert in_words(many) == "8 pictures CC-BY-4.0 (A0, A1, A2, A3, A4 and 3 more)"
    assert in_words(sums([Attributes()] * 2, Rights("mit", "Ada"))) == "2 pictures MIT (Ada)"


def test_authors_are_credited_where_their_licence_asks_for_it() -> None:
    assert credit_lines(ATTRIBUTES, Rights()) == [
        "5 pictures by Ada, CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/), from https://example.org/0, "
        "https://example.org/1, https://example.org/2 and 2 more",
        "1 picture by Bob, CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/)",
    ]
    nameless = credit_lines([Attributes(license="CC-BY-SA-3.0")], Rights())
    assert nameless[0].startswith("1 picture by an author who is not recorded, CC-BY-SA-3.0")


def test_neither_addresses_nor_paths_of_authors_and_sources_are_published() -> None:
    assert public_author("Ada <ada@example.org>") == public_author("Ada (mailto:ada@example.org)") == "Ada"
    assert public_author("ada@example.org") == "…" and public_author("Ada, /home/ada/pictures/1.jpg") == "Ada, …"
    assert public_source("https://ada:secret@example.org/1.jpg?X-Signature=abc#x") == "https://example.org/1.jpg"
    assert public_source("/home/ada/pictures/1.jpg") == "…" and public_source("file:///tmp/x.jpg") == "…"
    assert public_source("catalogue 12, photo 7") == "catalogue 12, photo 7"


def test_more_credits_than_a_header_holds_are_counted() -> None:
    text = bounded([f"{n} " + "x" * 1000 for n in range(100)])
    assert len(text.encode()) < 66_000 and text.endswith(f"\nand {100 - text.count(chr(10))} more")
    assert bounded(["a", "b"]) == "a\nb"


def test_a_column_of_a_table_and_a_table_of_sidecars_count_once(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    picture(0).save(root / "0.png")
    write_jsonl(root / "metadata.jsonl", {"0.png": "a mug"})
    (root / "0.png.license").write_text(REUSE)
    report = audit(root, **WORDS)
    assert licensed(report) == {"0.png": ("CC-BY-4.0", "Ada Lovelace <ada@example.org>")}
    assert report.files == report.seen + report.captions == 3
