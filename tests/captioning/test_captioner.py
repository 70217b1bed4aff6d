"""Which answers are captions: empty, looping and refusing ones are not."""

import pytest

from finetune.captioning.captioner import Answer, caption_fault, screened

CAPTIONS = [
    "a bell", "a sks handbag on a yellow background", "a red car, a red bus and a red truck",
    "two dogs and two dogs in two baskets", "Glocke", "a can of soup", "very, very, very tall tower", "鐘",
]  # fmt: skip


@pytest.mark.parametrize("text", CAPTIONS)
def test_a_caption_is_one(text):
    assert caption_fault(text) == ""


@pytest.mark.parametrize("text, why", [
    ("", "empty"), ("  \n", "empty"), ("...", "empty"), ("12 34", "empty"),
    ("dog dog dog dog", "repeats itself"), ("a bell, " + "on a table, " * 4, "repeats itself"),
    ("I cannot help with that.", "refuses"), ("As an AI, I see a bell", "refuses"), ("I'm sorry, but no", "refuses"),
    ("Sorry, no picture", "refuses"), ("I am unable to view images", "refuses"), ("Please upload a picture", "refuses"),
])  # fmt: skip
def test_what_is_no_caption_is_named(text, why):
    assert caption_fault(text) == why


def test_an_answer_is_one_line_without_chatter():
    assert screened(Answer('Sure! Here is a caption:\n "a bell\non a table"\n')) == Answer("a bell on a table", "")
    assert screened(Answer("I can\u2019t see it")).problem == "refuses"


def test_a_problem_that_the_captioner_names_stays():
    assert screened(Answer("a bell", "not sure")) == Answer("a bell", "not sure")
