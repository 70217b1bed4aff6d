"""What a prompt may hold is said where the recipe is read, with the place and with what to write instead."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from finetune import recipe
from finetune.errors import RecipeError
from finetune.recipe.placeholders import prompt_fault

FOREIGN = {
    "a {red|blue} mug": ("{red|blue} is a wildcard", 'write each prompt: "a red mug", "a blue mug"'),
    "{a|{b|c}}": ("{b|c} is a wildcard", "write each prompt"),
    "a {Trigger} mug": ("{Trigger} is an unknown placeholder", "write {trigger}"),
    "a { class word }": ("{ class word } is an unknown placeholder", "write {class_word}"),
    "a {class}": ("{class} is an unknown placeholder", "write {class_word}"),
    "a {subject}": ("{subject} is an unknown placeholder", "{trigger} and {class_word} only"),
    "a {} mug": ("{} is an unknown placeholder", "{trigger} and {class_word} only"),
    "a {trigger mug": ("a stray {", "braces around"),
    "a mug}": ("a stray }", "braces around"),
    "{{trigger}}": ("a stray {", "braces around"),
    "a mug <lora:mug:0.8>": ("<lora:mug:0.8> is how web UIs load", "adapters are given as files"),
    "a __colour__ mug": ("__colour__ is a wildcard", "a prompt for each choice"),
    "a (red mug:1.3)": ("(red mug:1.3) is a weight", "without brackets and number"),
    "a mug --n blurry": ("--n is an option", "leave it out"),
    "a mug --ar 16:9": ("--ar is an option", "leave it out"),
}
SOUND = (
    "", "a mug", "{trigger}", "{class_word}s and a {trigger}'s", "a clock (10:30)", "16:9 (4:3)", "snake_case__x",
    "((a))", "well--known", "a mug -- a cup", "#1 dad mug", "<3", "a|b",
)  # fmt: skip


@pytest.mark.parametrize("prompt", FOREIGN)
def test_what_is_not_read_is_named_with_what_to_write(prompt):
    fault = prompt_fault(prompt)
    assert fault is not None
    assert FOREIGN[prompt][0] in fault.problem and FOREIGN[prompt][1] in fault.remedy


@pytest.mark.parametrize("prompt", SOUND)
def test_words_and_the_two_placeholders_are_sound(prompt):
    assert prompt_fault(prompt) is None


def test_a_recipe_says_which_prompt_of_which_key_and_all_of_them_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "pocket"\n[data]\npath = "p"\n[prior]\nmode = "images"\npath = "q"\nprompt = "a {clas_word}"\n'
        '[sample]\nprompts = ["a {trigger}", "a {red|blue} mug", "a {subject}"]\nnegative = "{x}"\n'
    )
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    said = caught.value.problem
    assert said.startswith(f"{path}: 4 problems") and str(path) in caught.value.hint
    for words in ("sample.prompts, item 2: {red|blue}", "sample.prompts, item 3: {subject}", "sample.negative: {x}",
                  "prior.prompt: {clas_word} is an unknown placeholder; write {class_word}"):  # fmt: skip
        assert words in said, said


def test_an_override_and_a_recipe_built_in_python_are_held_to_the_same():
    with pytest.raises(RecipeError, match=r"item 1: \{a\|b\} is a wildcard"):
        recipe.load(Path("pocket-product"), ['sample.prompts=["{a|b}"]'])
    with pytest.raises(ValidationError, match="unknown placeholder"):
        recipe.Recipe.model_validate({"base": "pocket", "data": {"path": Path("p")}, "sample": {"prompts": ["{x}"]}})
