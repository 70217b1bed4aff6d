"""Answers of models, cleaned by what the pictures show."""

import pytest

from finetune.captioning.cleaning import cleaned, content, setting
from finetune.data.text.captions import with_trigger
from finetune.data.text.wording import CaptionWords

MUG = CaptionWords("sks", "mug")
STYLE = CaptionWords("sks", kind="style")


@pytest.mark.parametrize(
    "said, caption",
    [
        ("A white mug sitting on a wooden table.", "a sks mug on a wooden table"),
        ("a purple handbag with white dots on a yellow background", "a sks mug on a yellow background"),
        ("a mug with a plant in the background", "a sks mug with a plant in the background"),
        ("a mug with flowers in it on grass", "a sks mug on grass"),
        ("The image shows a mug in the picture, next to a red book. It is full.", "a sks mug next to a red book"),
        ("A mug. It stands against a brick wall, in the sun.", "a sks mug against a brick wall, in the sun"),
        ("beside a lake stands a mug", "a sks mug beside a lake stands a mug"),
        ("a ceramic mug", "a sks mug"),
    ],
)
def test_of_a_product_the_setting_stays_and_its_looks_go(said, caption):
    assert setting(said, MUG) == caption == cleaned(said, MUG).text


def test_without_a_class_word_a_product_is_named_by_its_trigger():
    assert setting("a thing on a shelf", CaptionWords("sks", kind="product")) == "sks on a shelf"
    assert setting("a pot on a shelf", CaptionWords("ukx", "pot")) == "a ukx pot on a shelf"


@pytest.mark.parametrize(
    "said, caption",
    [
        ("An illustration of a bell on a white background.", "a bell"),
        ("a black and white drawing of a crown", "a crown"),
        ("The image shows a sailing boat in a flat, minimalist style.", "a sailing boat"),
        ("A simple icon of an open book, line art", "an open book"),
        ("a bell icon with a beige background", "a bell"),
        ("This is an illustration. A cat sits on a red chair.", "a cat sits on a red chair"),
        ("a girl with a picture of a dog", "a girl with a picture of a dog"),
        ("a lighthouse on a cliff", "a lighthouse on a cliff"),
    ],
)
def test_of_a_style_the_content_stays_and_medium_and_ground_go(said, caption):
    assert content(said) == caption
    assert with_trigger(cleaned(said, STYLE).text, STYLE) == f"{caption}, sks style"


@pytest.mark.parametrize("said", ["an illustration", "a white background", "A flat icon on a plain background."])
def test_an_answer_of_medium_and_ground_alone_is_none(said):
    assert cleaned(said, STYLE).problem == "says nothing but medium and ground"


def test_other_kinds_keep_all():
    assert cleaned("A mug on a table.", CaptionWords("sks", kind="other")).text == "a mug on a table"
