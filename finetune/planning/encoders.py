"""What the text encoders of a base make of captions and of the trigger: tokens against the limit, and known words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune import families
from finetune.families import TokenCounter

RARE_FROM = 0.8
"""share of a vocabulary after which its words are rare: tokenizers number what they saw often first"""
MANY_TOKENS = 4
_BEFORE = "a"
"""a word before the trigger, as most captions have: some tokenizers cut the first word of a text otherwise"""


class EncoderReport(NamedTuple):
    """Captions as one text encoder reads them."""

    encoder: str
    limit: int
    """Tokens that it reads, those around the caption included."""
    longest: int
    mean: float
    too_long: int
    """Captions of which it does not read the end."""
    trigger: tuple[str, ...]
    """The tokens of the trigger."""
    known_as: str
    """What the base takes the trigger for: an ordinary word, ordinary words, or a rare word; "" where it does not."""


def encoder_reports(base: str, captions: Sequence[str], trigger: str | None) -> list[EncoderReport]:
    """One for each text encoder; of those that read alike one for all."""
    reports: dict[tuple[object, ...], EncoderReport] = {}
    for encoder, counter in families.token_counters(base).items():
        counts = [_count(counter, caption) for caption in captions]
        tokens, known_as = trigger_tokens(counter.tokenizer, trigger) if trigger else ((), "")
        report = EncoderReport(
            encoder, counter.limit, max(counts, default=0), sum(counts) / len(counts) if counts else 0.0,
            sum(n > counter.limit for n in counts), tokens, known_as,
        )  # fmt: skip
        same = reports.get(report[1:])
        reports[report[1:]] = same._replace(encoder=f"{same.encoder}, {encoder}") if same else report
    return list(reports.values())


def _count(counter: TokenCounter, caption: str) -> int:
    return counter.lost(caption)[0]


def trigger_tokens(tokenizer: Any, trigger: str) -> tuple[tuple[str, ...], str]:
    """(tokens, what they are known as). A whole word of the vocabulary is ordinary or rare by its place in it; what is
    cut within a word is not known as anything."""
    ids = _ids(tokenizer, trigger)
    tokens = tuple(str(tokenizer.decode([one])).strip() for one in ids)
    words = [_ids(tokenizer, word) for word in trigger.split()]
    if any(len(word) != 1 for word in words):
        return tokens, ""
    places = [word[0] / len(tokenizer) for word in words]
    if len(places) == 1:
        return tokens, "an ordinary word" if places[0] < RARE_FROM else "a rare word"
    return tokens, "ordinary words" if max(places) < RARE_FROM else ""


def _ids(tokenizer: Any, text: str) -> list[int]:
    before: list[int] = tokenizer(_BEFORE, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(f"{_BEFORE} {text}", add_special_tokens=False)["input_ids"]
    return whole[len(before) :]


def encoder_sentences(reports: Sequence[EncoderReport], trigger: str | None) -> list[str]:
    """The sums of each encoder, and what is to be known of the trigger."""
    sentences = []
    for one in reports:
        cut = f"; captions over the limit, to be shortened: {one.too_long}" if one.too_long else ""
        sentences.append(f"{one.encoder}: the longest caption has {one.longest} tokens, the limit is {one.limit}{cut}")
    if trigger:
        sentences += list(dict.fromkeys(_trigger_sentence(one, trigger) for one in reports))
    return sentences


def _trigger_sentence(one: EncoderReport, trigger: str) -> str:
    number = "1 token" if len(one.trigger) == 1 else f"{len(one.trigger)} tokens ({' | '.join(one.trigger)})"
    said = f"trigger {trigger!r}: {number}"
    if one.known_as.startswith("ordinary") or one.known_as == "an ordinary word":
        return f"{said}, {one.known_as} of the base, which already stands for something: choose a rarer one"
    if one.known_as:
        return f"{said}, {one.known_as} of the base: a good trigger"
    if len(one.trigger) > MANY_TOKENS:
        return f"{said}, which the base does not know: a shorter one is learnt more easily"
    return f"{said}, not a word that the base knows: a good trigger"
