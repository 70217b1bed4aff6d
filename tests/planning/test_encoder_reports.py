"""Captions against the limit of each text encoder, and what a base takes the trigger for."""

import pytest

from finetune import families
from finetune.planning.encoders import encoder_reports, encoder_sentences, trigger_tokens

CAPTIONS = ["a sks mug", "a sks mug on a table with a long cloth " + "and a cloth " * 12]


def test_the_sums_are_those_of_each_caption() -> None:
    counter = families.tokenizer("pocket")
    counts = [counter.lost(caption)[0] for caption in CAPTIONS]
    (report,) = encoder_reports("pocket", CAPTIONS, "sks")
    assert (report.encoder, report.limit, report.longest) == ("text_encoder", 32, max(counts))
    assert report.mean == sum(counts) / 2 and report.too_long == 1
    assert "captions over the limit, to be shortened: 1" in encoder_sentences([report], "sks")[0]


class Words:
    """A tokenizer of whole words, numbered from the most frequent one, that spells out the others."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def __len__(self) -> int:
        return len(self.words)

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        pieces = [piece for word in text.split() for piece in ([word] if word in self.words else word)]
        return {"input_ids": [self.words.index(piece) for piece in pieces]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)


TEN = Words("a", "mug", "red", "dog", "s", "k", "o", "h", "x", "zwx")


@pytest.mark.parametrize("trigger, tokens, known_as", [
    ("dog", ("dog",), "an ordinary word"), ("zwx", ("zwx",), "a rare word"), ("sks", ("s", "k", "s"), ""),
    ("red mug", ("red", "mug"), "ordinary words"), ("sks mug", ("s", "k", "s", "mug"), ""),
    ("zwx mug", ("zwx", "mug"), ""),
])  # fmt: skip
def test_a_whole_word_of_the_vocabulary_is_known_and_pieces_are_not(trigger, tokens, known_as) -> None:
    assert trigger_tokens(TEN, trigger) == (tokens, known_as)


@pytest.mark.parametrize("trigger, said", [
    ("mug", "an ordinary word of the base, which already stands for something"),
    ("sks", "2 tokens (sk | s), not a word"),
    ("xqzjkwvy", "a shorter one is learnt more easily"), ("red mug", "ordinary words of the base"),
])  # fmt: skip
def test_the_pocket_base_says_what_it_knows(trigger: str, said: str) -> None:
    assert said in encoder_sentences(encoder_reports("pocket", ["a mug"], trigger), trigger)[-1]


def test_encoders_that_read_alike_have_one_line() -> None:
    (one,) = encoder_reports("pocket", ["a mug"], None)
    assert encoder_sentences([one], None) == ["text_encoder: the longest caption has 4 tokens, the limit is 32"]
    assert encoder_reports("pocket", [], None)[0].longest == 0
