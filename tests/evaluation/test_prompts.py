"""What a verdict is painted from: prompts that training never saw, in the words of the base's own world."""

import dataclasses
from pathlib import Path

import pytest

from finetune import resources as shipped
from finetune.data.dataset import read_dataset
from finetune.data.example import Dataset
from finetune.evaluation.prompts import aim_of, bare_caption, pictures_for, prompt_set


def dataset(*captions: str, trigger: str | None = "sks", class_word: str | None = "mug", kind: str = "") -> Dataset:
    example = read_dataset(shipped.data_path(Path("example:product")))
    some = tuple(example.examples[i % 6]._replace(caption=caption) for i, caption in enumerate(captions))
    card = example.card.model_copy(update={"kind": kind})
    return dataclasses.replace(example, examples=some, trigger=trigger, class_word=class_word, card=card)


CUPS = [f"a sks mug on a {colour} background" for colour in ("yellow", "white", "pink")]


def test_a_product_is_asked_for_where_no_caption_puts_it():
    asked = prompt_set(dataset(*CUPS), True, 10)
    assert asked.aim == "product" and len(asked.with_trigger) == 10
    assert asked.with_trigger[0].prompt == "a sks mug on a purple background"
    said = " ".join(a.prompt for a in asked.with_trigger)
    assert not any(colour in said for colour in ("yellow", "white", "pink"))
    assert "an orange background" in said


def test_each_picture_has_a_seed_of_its_own_and_the_same_whenever_it_is_asked():
    asked = prompt_set(dataset(*CUPS), True, 30)
    seeds = [a.seed for a in (*asked.with_trigger, *asked.without)]
    assert len(set(seeds)) == len(seeds) == pictures_for(30) / 2
    assert asked == prompt_set(dataset(*CUPS), True, 30)
    assert len({a.prompt for a in asked.with_trigger}) < 30  # prompts come again, at another seed


def test_a_style_is_asked_for_with_objects_that_no_caption_names():
    asked = prompt_set(dataset("a car, sks style", "an owl, sks style", class_word=None), True, 20)
    assert asked.aim == "style" and asked.with_trigger[0].prompt == "a banana, sks style"
    assert not any("car," in a.prompt or "owl" in a.prompt for a in asked.with_trigger)
    assert "an umbrella, sks style" in [a.prompt for a in asked.with_trigger]


@pytest.mark.parametrize("pocket, known", [(True, "background"), (False, "beach")])
def test_a_base_of_photos_is_asked_for_settings_and_the_pocket_base_for_colours(pocket, known):
    assert any(known in a.prompt for a in prompt_set(dataset(*CUPS), pocket, 10).with_trigger)
    assert ("beach" in str(prompt_set(dataset(*CUPS), True, 10))) is False


def test_pictures_without_the_trigger_show_other_things_and_the_class_itself():
    for asked in (prompt_set(dataset(*CUPS), True, 10), prompt_set(dataset(*CUPS), False, 10)):
        assert len(asked.without) == 6 and not any("sks" in a.prompt for a in asked.without)
        assert asked.without[0].prompt.startswith("a mug ")
        assert not any(a.prompt.startswith("a mug ") for a in asked.without[1:])
    styled = prompt_set(dataset("a star, sks style", kind="style"), True, 10).without
    assert not any("sks" in a.prompt or "style" in a.prompt for a in styled)


def test_a_judge_is_asked_in_words_without_the_trigger():
    found = dataset(*CUPS)
    assert bare_caption("a sks mug on a red background", found) == "a mug on a red background"
    assert bare_caption("a car, sks style", found) == bare_caption("a car in sks style", found) == "a car"


def test_the_users_prompts_stand_in_place_of_ours_and_those_without_the_trigger_must_not_change():
    asked = prompt_set(dataset(*CUPS), True, 4, ("a {trigger} {class_word} in space", "a dog"))
    assert {a.prompt for a in asked.with_trigger} == {"a sks mug in space"}
    assert {a.prompt for a in asked.without} == {"a dog"}
    assert len(prompt_set(dataset(*CUPS), True, 4, ("a dog",)).with_trigger) == 4  # ours, where there is none


def test_without_a_trigger_the_captions_themselves_are_asked_for():
    asked = prompt_set(dataset("a mug", "a cup", trigger=None), True, 4)
    assert [a.prompt for a in asked.with_trigger] == ["a mug", "a cup"] * 2 and asked.without


def test_captions_that_name_nearly_everything_leave_something_to_ask_for():
    colours = "purple teal brown black red orange yellow green blue pink white".split()
    asked = prompt_set(dataset(*(f"a sks mug on a {colour} background" for colour in colours)), True, 10)
    assert len({a.prompt for a in asked.with_trigger}) == 10


def test_what_is_to_be_learnt_is_what_the_card_says_or_what_most_captions_speak_of():
    assert aim_of(dataset("a sks mug", kind="style")) == "style"
    assert aim_of(dataset("a car, sks style", "a sks mug", "a cat, sks style")) == "style"
    assert aim_of(dataset("a sks mug", "a car, sks style")) == "product"
    assert aim_of(dataset("a stylish mug")) == "product"


def test_the_examples_are_known_for_what_they_are():
    found = {kind: read_dataset(shipped.data_path(Path(f"example:{kind}"))) for kind in ("product", "style")}
    assert {kind: aim_of(data) for kind, data in found.items()} == {"product": "product", "style": "style"}
    for data in found.values():
        said = " ".join(e.caption for e in data.examples)
        asked = prompt_set(data, True, 10)
        words = [a.caption.split()[-2 if asked.aim == "product" else -1] for a in asked.with_trigger]
        assert not any(f" {word} " in said for word in words)
