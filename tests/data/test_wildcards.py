"""Wildcards of captions and templates are written out, all of them or a stated number; what is no wildcard is said."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.text.captions import clean_words
from finetune.data.text.wildcards import MOST_WRITTEN_OUT, combinations, wildcard_fault, write_out
from finetune.data.text.wording import templates
from finetune.errors import DataError


def test_every_combination_is_written_out_in_order() -> None:
    assert write_out("a {red|blue} mug {on grass|in a hand}") == [
        "a red mug on grass", "a red mug in a hand", "a blue mug on grass", "a blue mug in a hand",
    ]  # fmt: skip


def test_wildcards_lie_in_one_another_and_options_may_be_empty() -> None:
    assert write_out("a {{dark |}red|blue} mug") == ["a dark red mug", "a red mug", "a blue mug"]
    assert write_out("a mug{, from above|}, evening") == ["a mug, from above, evening", "a mug, evening"]
    assert write_out("a {very |}{trigger} mug") == ["a very {trigger} mug", "a {trigger} mug"]


@given(st.lists(st.lists(st.sampled_from(["red", "blue", "old", "new", "big"]), min_size=2, max_size=3, unique=True),
                min_size=1, max_size=5))  # fmt: skip
def test_what_is_written_out_are_the_products_of_the_options(groups: list[list[str]]) -> None:
    text = " and ".join(f"{{{'|'.join(options)}}}" for options in groups)
    every = {" and ".join(words) for words in product(*groups)}
    found = write_out(text)
    assert combinations(text) == len(every) and len(found) == len(set(found)) == min(len(every), MOST_WRITTEN_OUT)
    assert set(found) <= every and found[0] == " and ".join(options[0] for options in groups)
    assert found == write_out(text), "the same each time"


@given(st.text("{}|a ,$:1", max_size=40))
def test_any_text_is_either_faulty_or_written_out_without_bars_in_braces(text: str) -> None:
    if wildcard_fault(text):
        return
    for one in write_out(text):
        assert not re.search(r"\{[^{}]*\|", re.sub(r"\{\w*\}", "", one))
    assert len(write_out(text)) <= MOST_WRITTEN_OUT


@pytest.mark.parametrize(
    "text", ["{" * 50_000 + "|" * 50_000, "{a|" * 20_000 + "}" * 20_000, "{a|b}" * 20_000, "{a|b}" * 1000]
)
def test_a_text_made_to_hurt_is_answered_at_once(text: str) -> None:
    assert wildcard_fault(text) or len(write_out(text)) <= MOST_WRITTEN_OUT


def test_more_braces_than_a_caption_has_are_refused() -> None:
    assert wildcard_fault("{a|b}" * 1001) == "it has 1,001 opening braces; at most 1,000 are read"


@pytest.mark.parametrize("text, said", [
    ("a {2$$red|blue} mug", "{2$$... is a wildcard with a number"),
    ("a {0.5::red|blue} mug", "{0.5::... is a wildcard with a number"),
    ("a {red|blue mug", "{red| is an unclosed wildcard"),
    ("a red|blue} mug", "|blue} is an unclosed wildcard"),
])  # fmt: skip
def test_what_is_no_wildcard_is_said(text: str, said: str) -> None:
    assert wildcard_fault(text).startswith(said) and "{one|another}" in wildcard_fault(text)


def test_a_template_may_have_wildcards() -> None:
    words = clean_words("sks", "mug", "a {photo|picture} of {trigger} {class_word}")
    assert templates(words) == ("a photo of sks mug", "a picture of sks mug")
    with pytest.raises(DataError, match=r"unknown placeholder \{subject\}"):
        clean_words("sks", "mug", "a {photo|{subject}}")
