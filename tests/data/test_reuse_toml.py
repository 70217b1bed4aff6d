"""REUSE.toml says the licences of many pictures at once, by the rules of reuse.software's specification 3.2."""

from pathlib import Path

import pytest
from support.sources import picture_bytes, prepared_from

from finetune.data.audit import Audit, audit
from finetune.data.rights.reuse_toml import path_matches
from finetune.errors import DataError


def checked(root: Path) -> Audit:
    return audit(root, trigger="sks", class_word="mug", allow_uncaptioned=True)


def folder(root: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture_bytes(n))
    return root


def reuse(place: Path, *tables: tuple[str, str, str, str]) -> None:
    """(path, licence, author, precedence)"""
    text = "version = 1\n"
    for path, license, author, precedence in tables:
        text += f"[[annotations]]\npath = {path}\n"
        text += f'SPDX-License-Identifier = "{license}"\n' if license else ""
        text += f'SPDX-FileCopyrightText = "{author}"\n' if author else ""
        text += f'precedence = "{precedence}"\n' if precedence else ""
    place.mkdir(parents=True, exist_ok=True)
    (place / "REUSE.toml").write_text(text)


def rights(root: Path) -> dict[str, tuple[str, str]]:
    report = checked(root)
    assert not report.problems and not report.rejected, (report.problems, report.rejected)
    return {e.name: (e.attributes.license, e.attributes.author) for e in report.used}


def test_each_picture_has_what_the_last_table_says_that_names_it(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png", "sub/c.png", "sub/deep/d.png")
    reuse(tmp_path, ('"**"', "CC-BY-4.0", "2024 Ada <ada@example.org>", ""), ('["b.png", "sub/*"]', "CC0-1.0", "", ""))
    ada = ("CC-BY-4.0", "Ada <ada@example.org>")
    assert rights(tmp_path) == {"a.png": ada, "b.png": ("CC0-1.0", ""), "sub/c.png": ("CC0-1.0", ""),
                                "sub/deep/d.png": ada}  # fmt: skip


def test_what_a_picture_says_itself_goes_before_and_what_it_lacks_comes_from_the_nearest_file(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "sub/b.png", "sub/c.png")
    (tmp_path / "a.png.license").write_text("SPDX-License-Identifier: MIT")
    (tmp_path / "sub" / "b.png.license").write_text("SPDX-License-Identifier: 0BSD\nSPDX-FileCopyrightText: Bob")
    reuse(tmp_path, ('"**"', "CC-BY-4.0", "Ada", ""))
    reuse(tmp_path / "sub", ('"*.png"', "CC0-1.0", "", ""))
    assert rights(tmp_path) == {"a.png": ("MIT", "Ada"), "sub/b.png": ("0BSD", "Bob"), "sub/c.png": ("CC0-1.0", "Ada")}


def test_aggregate_adds_and_override_is_all_that_counts(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png", "sub/c.png")
    for name in ("a.png", "b.png"):
        (tmp_path / f"{name}.license").write_text("SPDX-License-Identifier: MIT\nSPDX-FileCopyrightText: Bob")
    reuse(tmp_path, ('"a.png"', "CC0-1.0", "Ada", "aggregate"), ('["b.png", "sub/**"]', "CC-BY-4.0", "Eve", "override"))
    reuse(tmp_path / "sub", ('"c.png"', "CC0-1.0", "Ada", "override"))
    assert rights(tmp_path) == {"a.png": ("MIT AND CC0-1.0", "Bob; Ada"), "b.png": ("CC-BY-4.0", "Eve"),
                                "sub/c.png": ("CC-BY-4.0", "Eve")}  # fmt: skip


def test_texts_of_licences_are_no_captions_and_every_file_is_accounted_for(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", "a.png", "b.png")
    reuse(root, ('"**"', "CC-BY-4.0 OR MIT", "Ada", ""))
    (root / "LICENSES").mkdir()
    for name in ("CC-BY-4.0", "MIT"):
        (root / "LICENSES" / f"{name}.txt").write_text("All you may do.")
    report = checked(root)
    assert not report.problems and not report.rejected and (report.files, report.captions, report.seen) == (5, 3, 2)
    made, _ = prepared_from(root, tmp_path / "made", allow_uncaptioned=True,
                            require_license=["MIT"])  # fmt: skip
    assert {e.attributes.license for e in made.examples} == {"CC-BY-4.0 OR MIT"}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "`version` is None"),
        ("version = 2", "`version` is 2"),
        ("version = 1\n[annotations]", "must be tables"),
        ("version = 1\n[[annotations]]", "annotations 1: `path` must name files"),
        ("version = 1\n[[annotations]]\npath = 3", "`path` must be a text"),
        ('version = 1\n[[annotations]]\npath = "*"\nprecedence = "last"', "`precedence` is 'last'"),
        ('version = 1\n[[annotations]]\npath = "*"\nSPDX-License-Identifier = 1', "Identifier` must be a text"),
        ("version = ", "REUSE.toml"),
    ],
)
def test_a_file_that_is_none_is_a_problem_that_says_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    (folder(tmp_path, "a.png") / "REUSE.toml").write_text(text)
    (said,) = checked(tmp_path).problems
    assert problem in said and str(tmp_path) not in said


@pytest.mark.parametrize(
    "path, named, others",
    [
        ("*.png", ["a.png", ".png", "ä b.png"], ["sub/a.png", "a.jpg", "a.png.x"]),
        ("**", ["a.png", "sub/a.png"], []),
        ("**/a.png", ["a.png", "x/y/a.png"], ["ba.png", "x/ba.png"]),
        ("sub/**", ["sub/a", "sub/x/y"], ["subx/a", "a/sub/b"]),
        ("s*b/*/a*g", ["sub/x/a.png", "sb//ag"], ["sub/a.png", "sub/x/y/a.png"]),
        (r"a\*.png", ["a*.png"], ["ab.png"]),
        (r"a\\b", [r"a\b"], [r"a\\b"]),
        ("./a.png", ["a.png"], ["./a.png"]),
        ("a[1].png", ["a[1].png"], ["a1.png"]),
        ("**x**", ["x", "a/x/b"], ["ab"]),
        ("*x**/b", ["ax/b", "x/c/b"], ["a/x/b", "xb"]),
    ],
)
def test_paths_name_files_as_the_specification_has_it(path: str, named: list[str], others: list[str]) -> None:
    assert [name for name in [*named, *others] if path_matches(path, name)] == named


def test_no_pattern_takes_long() -> None:
    """A matcher that goes back and tries again would not return."""
    assert not path_matches("*a" * 400 + "b", "a" * 250) and not path_matches("**a" * 300 + "b", "a" * 250)


def test_two_licences_that_differ_stay_a_problem(tmp_path: Path) -> None:
    """A column and a file beside the picture: neither goes before the other."""
    root = folder(tmp_path / "in", "a.png")
    (root / "a.license").write_text("MIT")
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a mug", "license": "CC0-1.0"}\n')
    reuse(root, ('"**"', "CC-BY-4.0", "Ada", ""))
    with pytest.raises(DataError, match=r"two licences for a.png"):
        prepared_from(root, tmp_path / "made")
