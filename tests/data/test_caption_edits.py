"""Tags of captions in another order, some left out: nothing is lost that may not be, and all of it is drawn by seed."""

import random
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.example import Example
from finetune.data.images.buckets import Size
from finetune.data.text.caption_edits import (
    TagEdits,
    changeable,
    edited,
    shown_caption,
    shown_captions,
    tags_of,
    variant_count,
    without_effect,
)  # fmt: skip
from finetune.data.text.captions import mentions

WORD = st.text(st.characters(categories=("Ll", "Lu", "Nd")), min_size=1, max_size=8)
TAG = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
TAGS = st.lists(TAG, min_size=1, max_size=12)
EDITS = st.builds(
    TagEdits, st.booleans(), st.integers(0, 4), st.sampled_from([0.0, 0.3, 0.9]), st.integers(1, 20),
    st.sampled_from([None, "sks", "zwx mug"]),
)  # fmt: skip


def example(caption: str, *more: str, name: str = "a.png") -> Example:
    return Example(Path(name), name, caption, name, Size(64, 64), wordings=(caption, *more) if more else ())


@given(TAGS, EDITS, st.integers(0, 1000), st.data())
@settings(max_examples=400)
def test_no_tag_is_lost_or_made_first_ones_stay_and_so_does_the_trigger(
    tags: list[str], edits: TagEdits, seed: int, data: st.DataObject
) -> None:
    if edits.trigger:
        tags.insert(data.draw(st.integers(0, len(tags))), f"a {edits.trigger}")
    caption = ", ".join(tags)
    before, shown = tags_of(caption), edited(caption, edits, random.Random(seed))
    after = tags_of(shown)
    assert shown == edited(caption, edits, random.Random(seed)), "the same chance, the same caption"
    assert not Counter(after) - Counter(before), "nothing new, nothing twice"
    assert after[: edits.keep] == before[: edits.keep]
    assert after, "never empty"
    if edits.dropout == 0:
        assert Counter(after) == Counter(before)
    if not edits.shuffle:
        rest = iter(before)
        assert all(tag in rest for tag in after), "in their order"
    if edits.trigger:
        own = f"a {edits.trigger}"
        assert after.count(own) == before.count(own) and mentions(shown, edits.trigger)
        if edits.dropout == 0 and before.index(own) == next(
            i for i, t in enumerate(before) if mentions(t, edits.trigger)
        ):
            assert after[before.index(own)] == own, "in its place"


@given(st.lists(TAGS.map(", ".join), min_size=1, max_size=5), EDITS, st.integers(0, 9), st.integers(0, 60))
def test_what_is_shown_is_a_function_of_seed_picture_and_visit_and_bounded(
    captions: list[str], edits: TagEdits, seed: int, visits: int
) -> None:
    one = example(*captions)
    shown = [shown_caption(one, edits, seed, visit) for visit in range(visits)]
    backwards = [shown_caption(one, edits, seed, visit) for visit in reversed(range(visits))]
    assert shown == backwards[::-1], "in any order, on any rank"
    assert shown_captions(one, edits, seed, visits) == set(shown)
    assert len(set(shown)) <= max(variant_count(one, edits), len(captions))
    assert variant_count(one, edits) < edits.variants + len(captions)


TWENTY = ", ".join(["sks mug", *(f"tag{n}" for n in range(19))])


def test_pictures_seeds_and_visits_differ_and_the_pool_is_used_up() -> None:
    edits = TagEdits(True, 1, 0.2, 16, "sks")
    shown = [shown_caption(example(TWENTY), edits, 0, visit) for visit in range(200)]
    assert len(set(shown)) == 16, "not 200 texts to encode"
    other = {shown_caption(example(TWENTY, name="b.png"), edits, 0, visit) for visit in range(200)}
    assert not set(shown) & other and not set(shown) & shown_captions(example(TWENTY), edits, 1, 200)
    assert min(Counter(shown).values()) >= 3, "each by turns"


def test_tags_are_left_out_as_often_as_is_asked_for() -> None:
    kept = Counter[str]()
    for seed in range(600):
        kept.update(tags_of(edited(TWENTY, TagEdits(dropout=0.25, trigger="sks"), random.Random(seed))))
    assert kept["sks mug"] == 600
    assert all(390 < kept[f"tag{n}"] < 510 for n in range(19))


def test_every_tag_comes_to_every_free_place() -> None:
    edits, seen = TagEdits(shuffle=True, keep=1), set[tuple[int, str]]()
    for seed in range(200):
        seen |= set(enumerate(tags_of(edited("first, a, b, c", edits, random.Random(seed)))))
    assert seen == {(0, "first"), *((place, tag) for place in (1, 2, 3) for tag in "abc")}


def test_several_captions_take_turns_in_the_pool_each_as_often_as_the_others() -> None:
    one = example("sks mug, a, b, c", "sks cup, d, e, f", "sks pot, g, h, i")
    edits = TagEdits(shuffle=True, variants=16, trigger="sks")
    assert variant_count(one, edits) == 18
    firsts = Counter(shown_caption(one, edits, 3, visit).split(",")[0] for visit in range(900))
    assert firsts.keys() == {"sks mug", "sks cup", "sks pot"} and min(firsts.values()) > 240


def test_sentences_and_numbers_stay_as_they_are() -> None:
    edits = TagEdits(shuffle=True, dropout=0.5, trigger="sks")
    for caption in ("a sks mug on a table", "a sks mug among 1,000 flowers", "a  sks mug ,"):
        assert edited(caption, edits, random.Random(0)) == caption and not changeable(caption, edits)
    assert tags_of("1girl,2boys , 1,000 stars,,") == ["1girl", "2boys", "1,000 stars"]


def test_edits_that_change_no_caption_are_said() -> None:
    plain, tags = [example("a sks mug on a table")], [example("a sks mug, red, round")]
    shuffled = TagEdits(shuffle=True, trigger="sks")
    assert "data.shuffle_tags has no effect" in without_effect(plain, shuffled)
    assert not without_effect(tags, shuffled) and not without_effect(plain, TagEdits())
    assert "and the first 2" in without_effect(tags, shuffled._replace(keep=2))
    assert not without_effect(tags, TagEdits(dropout=0.1, keep=2))
    assert "data.shuffle_tags and data.tag_dropout" in without_effect(tags, TagEdits(True, 3, 0.1))
