"""Module name patterns of adapter configurations: as PEFT matches them, and never for long."""

import random

import pytest
from peft.utils.other import get_pattern_key

from finetune.errors import BaseError
from finetune.files.patterns import check_pattern, patterns

PATHS = [
    f"{head}.{block}.{kind}.{leaf}"
    for head in ("down_blocks.0", "down_blocks.10", "up_blocks.1", "mid_block")
    for block in ("attentions.0.transformer_blocks.0", "attentions.1.transformer_blocks.0")
    for kind in ("attn1", "attn2")
    for leaf in ("to_q", "to_k", "to_out.0")
]
SOUND = [
    "to_q", "^to_q$", "attn1.to_q", "to_out.0", r"to_out\.0",
    r"^down_blocks\.0.attentions.0.transformer_blocks.0.attn1.to_k$",
    "mid_block.*.to_q", r".*attn2.*", "(to_q|to_k)", r"down_blocks\.\d+\..*", "[du].*_blocks.*to_k", "o_q",
    "attn[12].to_q",
    r"^(?!.*mid_block).*(to_q|to_k)$", "to_(q|k)", ".*", "to_q$", "up_blocks.1", "(?:attn1|attn2).to_q", "to_.{1,3}",
]  # fmt: skip
ENDLESS = [
    "(a+)+$", "(.*)*x", "(a|a)*$", "(a|aa)+$", "(?:a*)*b", "((a?)a?)*", ".*.*.*.*x", "a?a?a?a?aaaa", "(?:x+x+)+y",
    "(a|b)(a|b)(a|b)(a|b)", r"(.*)\1\1x", "(" * 60 + "a+" + ")+" * 60, "([a-z]+)*$", "(.*a){20}", "x" * 400 + "*",
    r"(\w+\s?)*$", "(?P<n>a+)+", "(a{1,9}){1,9}$", "(?=(a+)+$)x",
]  # fmt: skip


def test_the_first_pattern_that_matches_wins_as_in_peft() -> None:
    chance = random.Random(0)
    for pattern in SOUND:
        found = patterns({pattern: 1}, "here")
        assert [found.value(p, 0) for p in PATHS] == [int(get_pattern_key([pattern], p) == pattern) for p in PATHS]
    for _ in range(50):
        table = {pattern: n for n, pattern in enumerate(chance.sample(SOUND, 9))}
        several = patterns(table, "here")
        assert [several.value(p, -1) for p in PATHS] == [table.get(get_pattern_key(list(table), p), -1) for p in PATHS]


@pytest.mark.parametrize("text", ENDLESS)
def test_a_pattern_that_can_take_for_ever_is_refused(text: str) -> None:
    with pytest.raises(BaseError, match="rank_pattern"):
        patterns({text: 1}, "a.json: rank_pattern")
    with pytest.raises(BaseError):
        check_pattern(text, "here")


def test_what_is_no_pattern_is_said() -> None:
    with pytest.raises(BaseError, match="is no pattern"):
        patterns({"(to_q": 1}, "here")
    with pytest.raises(BaseError, match="9 patterns that are no names"):
        patterns({f"to_{n}.*": 1 for n in range(9)}, "here")


def test_a_name_for_each_of_many_modules_is_looked_up() -> None:
    table = {f"^blocks.{n}.to_q$": n for n in range(5000)}
    found = patterns(table, "here")
    assert [found.value(f"blocks.{n}.to_q", -1) for n in range(5001)] == [*range(5000), -1]
    assert found.value("x.blocks.3.to_q", -1) == -1 and not found.expressions
