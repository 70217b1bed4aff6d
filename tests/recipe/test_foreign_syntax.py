"""Tell-tales of other programs' syntax: each is found with what to write, and ordinary sentences are left alone."""

import pytest

from finetune.recipe.foreign_syntax import telltales, translated
from finetune.recipe.placeholders import prompt_fault

FOREIGN = {
    "a mug <lora:style:0.8>": "load an adapter",
    "a mug <hypernet:style:1>": "load an adapter",
    "a __colour__ mug": "wildcard",
    "a <random:red, blue> mug": "SwarmUI",
    "a <fromto[0.5]:cat, dog>": "SwarmUI",
    "a (blue:1.4) mug": "is a weight of web UIs",
    "a (blue mug:2)": "is a weight of web UIs",
    "a (blue)1.3 mug": "InvokeAI",
    "a (blue)++ mug": "InvokeAI",
    '("a mug", "a cup").blend(0.5, 0.5)': "compel's arithmetic",
    "1.5::blue mug ::": "NovelAI",
    "hot:: dog::-1": "Midjourney",
    "a [red:blue:0.5] mug": "changes the prompt at a step",
    "a mug [steam:10]": "changes the prompt at a step",
    "a [red|blue] mug": "alternates words",
    "a mug BREAK a table": "begins a new part",
    "a mug AND a table": "joins several prompts",
    "a mug ADDCOL a table": "Regional Prompter",
    "bad, embedding:EasyNegative": "ComfyUI loads an embedding",
    "a photo of sks, [filewords]": "file's caption",
    "1girl, mug ||| table, chair": "kept words",
    "sky;;;cloud;;;day": "kohya shuffles",
    "a mug <|endoftext|>": "token",
    "a mug\nNegative prompt: blurry": "web UIs write into a picture",
    "a mug Steps: 20, Sampler: Euler a": "web UIs write into a picture",
    "// remark": "comment of ComfyUI's",
    "a mug /* blue */ on a table": "comment of ComfyUI's",
    "a mug --n blurry": "option of other programs",
    "a mug --w 512 --h 512": "option of other programs",
    "a mug --ar 16:9": "option of other programs",
    "a mug --ctrl_img a.png": "option of other programs",
}
ORDINARY = (
    "a mug (red, 10:30) on a table; a cup -- a saucer",
    "the score is 4:3 (see fig. 3:2), Genesis 1:3, chapter (1)",
    'a sign that says "BREAK GLASS" in red, beside one of COFFEE AND TEA',
    "a photo [blurred] of a mug [2], price: $5.00 (was: $7.00), a shelf (top: 3 mugs)",
    "aspect ratio 16:9, f/1.8, ISO 100, at 10:10:30, [10:30] on the clock",
    "http://example.com/a__b__c is on the poster; c++ code on a screen; x || y; std::vector",
    "smile :) ;) <3, 1girl, solo, long_hair, (o)_(o), score_9, score_8_up",
    "the logo of AT&T and R&D; a well--known brand --- and more -- really",
    "#1 dad mug, 50% off, it's 'new' & \"old\", v1.5, M&M's, café (naïve), 赤いマグカップ",
    "a mug, embedding of gold in glass; a trigger; a name; the film Trigger (1999)",
)


@pytest.mark.parametrize("text", FOREIGN)
def test_syntax_of_other_programs_is_found_and_refused_in_prompts(text: str) -> None:
    found = [(one.what, one.remedy) for one, _ in telltales(text)]
    assert any(FOREIGN[text] in what for what, _ in found) and all(remedy for _, remedy in found), found
    assert prompt_fault(text) is not None


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_sentences_are_no_syntax(text: str) -> None:
    assert not list(telltales(text)) and translated(text) == (text, ())


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("[trigger] on a table", "{trigger} on a table"),
        ("a photo of [Name]", "a photo of {trigger}"),
        ("a photo of <embedding>", "a photo of {trigger}"),
        (r"a mug \(series\)", "a mug (series)"),
    ],
)
def test_what_has_a_meaning_here_is_taken_over_and_in_recipes_named_with_what_to_write(text: str, ours: str) -> None:
    assert translated(text).text == ours and len(translated(text).found) == 1
    fault = prompt_fault(text)
    assert fault is not None and fault.remedy.startswith("write ")
    assert prompt_fault(ours) is None
