"""Prompts speak of the trigger and the class word by placeholders, and read as English whatever the words are."""

import pytest

from finetune.data.text.prompts import all_lack, article, expand, is_plural, missing_word, with_article
from finetune.errors import InputError


@pytest.mark.parametrize(
    ("prompt", "trigger", "class_word", "reads"),
    [
        ("a photo of {trigger} {class_word} in the snow", "sks", "mug", "a photo of sks mug in the snow"),
        ("a photo of a {class_word}", "sks", "umbrella", "a photo of an umbrella"),
        ("an {class_word}", "sks", "mug", "a mug"),
        ("A {class_word}.", None, "umbrella", "An umbrella."),
        ("a {trigger} {class_word}", "ohwx", "mug", "an ohwx mug"),
        ("a {class_word} {trigger}", "sks", "umbrella", "an umbrella sks"),
        ("a {trigger} {class_word} on a table", "sks", "running shoes", "sks running shoes on a table"),
        ("a {class_word}", None, "pair of shoes", "a pair of shoes"),
        ("a {trigger} poster", "sks", "shoes", "a sks poster"),
        ("a {class_word}", None, "чашка", "a чашка"),
        ("a bicycle, {trigger} style", "sks", None, "a bicycle, sks style"),
        ("a red {class_word}, an {class_word}", None, "mug", "a red mug, a mug"),
        ("type A {class_word}", None, "umbrella", "type A umbrella"),
        ("  two  words ", None, None, "two  words"),
        ("a {class_word}", None, " tea \n cup ", "a tea cup"),
    ],
)
def test_words_stand_in_place_of_their_placeholders(prompt, trigger, class_word, reads):
    assert expand(prompt, trigger, class_word) == reads
    assert expand(reads, trigger, class_word) == reads, "a prompt that is filled in stays"


@pytest.mark.parametrize(
    ("prompt", "reads"),
    [
        ("a {trigger} {class_word}", "a Zwx Mug"),
        ("a {class_word} {trigger}", "a Zwx Mug"),
        ("a {trigger} beside a {class_word}", "a Zwx Mug beside a mug"),
        ("a {class_word}", "a mug"),
    ],
)
def test_a_trigger_that_contains_the_class_word_does_not_repeat_it(prompt, reads):
    assert expand(prompt, "Zwx Mug", "mug") == reads


def test_a_plural_inside_the_trigger_has_no_article():
    assert expand("a {trigger} on a table", "blue shoes", "shoes") == "blue shoes on a table"


@pytest.mark.parametrize(
    "word", ["apple", "umbrella", "hourglass", "LCD", "X-ray", "8-ball", "onion", "uninvited guest"]
)
def test_an_stands_before_the_sound_of_a_vowel(word):
    assert with_article(word) == f"an {word}" and article(word) == "an"


@pytest.mark.parametrize(
    "word", ["bell", "uniform", "USB stick", "ukulele", "one-piece", "sks mug", "glass", "lens", "bus"]
)
def test_a_stands_before_all_else(word):
    assert with_article(word) == f"a {word}"


@pytest.mark.parametrize("word", ["scissors", "running shoes", "glasses", "children", "women", "pairs of socks"])
def test_several_have_no_article(word):
    assert is_plural(word) and with_article(word) == word


@pytest.mark.parametrize(
    "word", ["chess board", "canvas", "iris", "cactus", "dress", "series", "specimen", "pair of socks"]
)
def test_one_is_no_plural(word):
    assert not is_plural(word)


@pytest.mark.parametrize(
    ("prompt", "lacking"), [("a {trigger} {class_word}", "trigger"), ("a {class_word}", "class word")]
)
def test_a_placeholder_without_a_word_is_never_an_empty_slot(prompt, lacking):
    for empty in (None, "", "  "):
        with pytest.raises(InputError, match=f"there is no {lacking}"):
            expand(prompt, empty, empty)
    assert missing_word(prompt, "sks", "mug") == "" and missing_word("a mug", None, None) == ""


@pytest.mark.parametrize("word", ["{x}", "{trigger}", "<lora:mug:1>"])
def test_a_word_that_is_no_plain_word_is_refused(word):
    with pytest.raises(InputError, match="no plain word"):
        expand("a {trigger}", word, None)


def test_what_is_not_read_is_refused_before_anything_is_filled_in():
    with pytest.raises(InputError, match="unknown placeholder") as caught:
        expand("a {subject}", "sks", "mug")
    assert "{trigger}" in caught.value.hint


def test_a_trigger_counts_as_a_whole_word_in_any_case():
    assert not all_lack(["a mug", "a SKS mug"], "sks") and not all_lack(["my  sks mug"], "my sks")
    assert all_lack(["a mug", "sksmug", "a sk"], "sks")
