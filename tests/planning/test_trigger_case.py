"""The trigger in another case than it was declared in, said where a base's text encoder would read another word."""

import json
from pathlib import Path

import pytest
from support.nasty_folder import encoded, picture
from typer.testing import CliRunner

from finetune import families
from finetune.cli import app
from finetune.planning.trigger_case import case_notice


def folds(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def test_it_counts_only_captions_that_have_the_trigger_in_no_other_way() -> None:
    captions = ["tok mug", "TOK mug", "a TOK beside a tok", "a mug", "Tok on a table", "token"]
    said = case_notice(captions, "TOK", None)
    assert said.startswith("2 of 6 captions write the trigger 'TOK' as 'tok'") and "keeps case" in said
    assert case_notice(captions, "TOK", folds) == "" and case_notice(captions, None, None) == ""
    assert "this base" in case_notice(captions, "TOK", lambda *_: False)
    assert case_notice(["TOK mug"], "TOK", None) == ""


@pytest.mark.parametrize(("base", "said"), [("pocket", ""), (None, "keeps case")])
def test_check_says_it_of_a_base_that_keeps_case_and_where_none_is_named(
    base: str | None, said: str, tmp_path: Path
) -> None:
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))
        (tmp_path / f"{i}.txt").write_text(f"tok mug, view {i}")
    more = ["--base", base] if base else []
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--trigger", "TOK", "--json", *more])
    notes = [n["text"] for n in json.loads(result.stdout)["notes"] if "write the trigger" in n["text"]]
    assert result.exit_code == 0 and len(notes) == bool(said) and said in "".join(notes)


def test_the_bundled_tokenizer_folds_case_and_tells_words_apart() -> None:
    counter = families.tokenizer("pocket")
    assert counter.same("TOK", "tok") and not counter.same("tok", "mug")
