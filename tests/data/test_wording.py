"""Captions that nobody wrote: file names that are words, templates in turns, and when neither will do."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.nasty_folder import encoded, picture, write_jsonl

import finetune
from finetune.data import dataset
from finetune.data.audit import audit
from finetune.data.prepare import prepare
from finetune.data.quality import caption_checks
from finetune.data.text.prompts import expand, with_article
from finetune.data.text.wording import CaptionWords, templates, wordings, words_of
from finetune.errors import DataError
from finetune.recipe import Data
from finetune.training.look import look


def folder(root: Path, *names: str) -> Path:
    root.mkdir()
    for i, name in enumerate(names):
        (root / name).write_bytes(encoded(picture(i, (96, 64 + 16 * i)), "PNG"))
    return root


@pytest.mark.parametrize(
    "name, words",
    [
        ("bell.png", "bell"), ("icons/ic_bell_64@2x.png", "bell"), ("icon-fire-truck.png", "fire truck"),
        ("FireTruck.png", "fire truck"), ("bell_final_v2.png", "bell"), ("bell copy (3).png", "bell"),
        ("t-shirt.png", "t-shirt"), ("handbag on beach 2.jpg", "handbag on beach"), ("crown-1024x768.png", "crown"),
        ("glöckchen.png", "glöckchen"), ("IMG_2041.jpg", ""), ("DSC00117.JPG", ""), ("PXL_20260412_0915.jpg", ""),
        ("Asset 12@2x.png", ""), ("Screenshot 2026-01-01.png", ""), ("01.png", ""), ("a3f9d01c.png", ""), ("x.png", ""),
        ("photo 3.jpg", ""), ("WhatsApp Image 2026-04-01.jpeg", ""), ("xkcdq.png", ""), ("final_v3.png", ""),
    ],
)  # fmt: skip
def test_a_file_name_says_what_it_shows_or_nothing(name, words):
    assert words_of(name) == words


@pytest.mark.parametrize(
    "noun, said",
    [("bell", "a bell"), ("owl", "an owl"), ("unicorn", "a unicorn"), ("hourglass", "an hourglass"),
     ("grapes", "grapes"), ("glass", "a glass"), ("octopus", "an octopus"), ("cherry tree", "a cherry tree")],
)  # fmt: skip
def test_articles_are_right(noun, said):
    assert with_article(noun) == said


def test_a_template_takes_the_article_that_fits():
    assert expand("a {trigger} {class_word}", "ohwx", "mug") == "an ohwx mug"
    assert expand("an {class_word} and a {class_word}", None, "umbrella") == "an umbrella and an umbrella"
    assert expand("a photo of a {trigger} {class_word}", "zwx mug", "mug") == "a photo of a zwx mug"
    assert expand("{trigger} {class_word}, outside", "zwx mug", "mug") == "zwx mug, outside"


def test_templates_vary_with_and_without_a_photo_of():
    product = templates(CaptionWords("sks", "mug"))
    assert product[0] == "a photo of sks mug" and {"a sks mug", "sks mug"} < set(product)
    assert all(
        one.endswith(", sks style") or one == "sks style" for one in templates(CaptionWords("sks", kind="style"))
    )
    assert templates(CaptionWords("sks", "icon", kind="style"))[0] == "an icon, sks style"
    assert templates(CaptionWords()) == ()
    assert templates(CaptionWords("sks", "mug", template="my {trigger}")) == ("my sks",)


def test_only_captions_that_nobody_wrote_are_varied():
    words = CaptionWords("sks", "mug")
    assert wordings("a sks mug on a table", "written", words) == ("a sks mug on a table",)
    assert wordings("a sks mug", "template", words) == templates(words)
    # somebody corrected it in the table: it is the person's now
    assert wordings("a sks mug on a table", "template", words) == ("a sks mug on a table",)
    assert wordings("a sks mug, outside", "filename", words) == ("a sks mug, outside", "a photo of a sks mug, outside")
    style = CaptionWords("sks", kind="style")
    assert wordings("an owl, sks style", "model", style) == ("an owl, sks style", "owl, sks style")


def test_names_that_are_words_caption_a_style(tmp_path):
    root = folder(tmp_path / "icons", "bell.png", "owl.png", "fire-truck.png")
    made = prepare(root, tmp_path / "out", trigger="sks", kind="style")
    assert [e.caption for e in made.examples] == ["a bell, sks style", "a fire truck, sks style", "an owl, sks style"]
    assert {e.origin for e in made.examples} == {"filename"} and made.card.captions == "file names"
    again = dataset.read_dataset(tmp_path / "out")
    assert again.examples == made.examples and again.fingerprint == made.fingerprint
    assert any(
        "bell.png -> 'a bell, sks style'" in note.text for note in audit(root, trigger="sks", kind="style").notes
    )


def test_names_of_cameras_leave_a_product_to_the_template(tmp_path):
    root = folder(tmp_path / "photos", "IMG_1.png", "IMG_2.png")
    made = prepare(root, tmp_path / "out", trigger="sks", class_word="mug")
    assert {e.caption for e in made.examples} == {"a photo of sks mug"} and made.card.captions == "template"
    assert all(e.wordings == templates(CaptionWords("sks", "mug")) for e in made.examples)
    assert dataset.read_dataset(tmp_path / "out").examples == made.examples


def test_words_of_a_products_file_name_stand_beside_the_class_word(tmp_path):
    root = folder(tmp_path / "photos", "mug on beach.png", "side view.png")
    found = audit(root, trigger="sks", class_word="mug")
    assert [e.caption for e in found.used] == ["a sks mug on beach", "a sks mug, side view"]


@pytest.mark.parametrize("names", [("mug-1.png", "mug-2.png"), ("bell.png", "IMG_1.png", "IMG_2.png")])
def test_names_that_say_the_same_or_hardly_anything_are_left_alone(names, tmp_path):
    found = audit(folder(tmp_path / "photos", *names), trigger="sks", class_word="mug")
    assert {e.origin for e in found.used} == {"template"}


def test_file_names_can_be_asked_for_and_turned_off(tmp_path):
    root = folder(tmp_path / "photos", "bell.png", "IMG_1.png", "owl.png")
    asked = audit(root, trigger="sks", kind="style", captions_from="filename")
    assert ["1 of 3 file names hold no words: IMG_1.png" in p for p in asked.problems] == [True]
    off = audit(root, trigger="sks", class_word="mug", captions_from="none")
    assert {e.caption for e in off.used} == {"a photo of sks mug"} and not off.problems


def test_equal_captions_of_a_style_are_refused_alike_before_and_after_preparing(tmp_path):
    root = folder(tmp_path / "photos", "IMG_1.png", "IMG_2.png")
    refused = "all 2 captions are 'an image, sks style': a style is learnt only when captions say what each picture"
    assert [refused in p for p in audit(root, trigger="sks", kind="style").problems] == [True]
    with pytest.raises(DataError, match="a style is learnt only when"):
        prepare(root, tmp_path / "out", trigger="sks", kind="style")
    made = prepare(root, tmp_path / "out", trigger="sks", kind="style", allow_uncaptioned=True)
    assert made.card.allow_uncaptioned and not audit(tmp_path / "out").problems
    write_jsonl(root / "metadata.jsonl", {"IMG_1.png": "a thing", "IMG_2.png": "a thing"})
    with pytest.raises(DataError, match="all 2 captions are 'a thing, sks style'"):
        prepare(root, tmp_path / "written", trigger="sks", kind="style")


@pytest.mark.parametrize("names", [("IMG_1.png", "IMG_2.png"), ("bell.png", "owl.png")])
def test_a_trigger_of_nobody_knows_what_is_asked_about(names, tmp_path):
    root = folder(tmp_path / "photos", *names)
    with pytest.raises(DataError, match=r"nothing says what 'sks' is(.|\n)*`class_word`(.|\n)*`kind` to style"):
        dataset.read_dataset(root, trigger="sks")
    allowed = dataset.read_dataset(root, trigger="sks", captions_from="none", allow_uncaptioned=True)
    assert [e.caption for e in allowed.examples] == ["a photo of sks"] * 2


def test_written_captions_of_a_style_end_in_it(tmp_path):
    root = folder(tmp_path / "icons", "1.png", "2.png", "3.png")
    write_jsonl(root / "metadata.jsonl", {"1.png": "a star.", "2.png": "a house, sks style", "3.png": "{trigger} sun"})
    made = prepare(root, tmp_path / "out", trigger="sks", kind="style")
    assert [e.caption for e in made.examples] == ["a star, sks style", "a house, sks style", "sks sun"]
    assert "caption_by" not in json.loads((tmp_path / "out/metadata.jsonl").read_text().splitlines()[0])


def test_the_table_says_who_wrote_and_what_it_does_not_know_is_the_persons(tmp_path):
    root = folder(tmp_path / "photos", "1.png", "2.png")
    rows = [{"file_name": "1.png", "text": "a mug", "caption_by": "model"},
            {"file_name": "2.png", "text": "a cup", "caption_by": "Anna"}]  # fmt: skip
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = audit(root, trigger="sks", class_word="mug")
    assert [e.origin for e in found.used] == ["model", "written"]
    assert found.origins == {"model": 1, "written": 1}


@pytest.mark.parametrize("template", ["a photo of {class_word}", "in {trigger} style, {class_word}"])
def test_a_template_with_an_empty_slot_is_refused(template, tmp_path):
    root = folder(tmp_path / "photos", "1.png", "2.png")
    with pytest.raises(DataError, match=r"asks for \{class_word\}, and there is no class word") as caught:
        audit(root, trigger="sks", template=template)
    assert "`class_word`" in caught.value.hint


def test_wordings_take_turns_by_seed_sample_and_visit(tmp_path):
    root = folder(tmp_path / "photos", "IMG_1.png", "IMG_2.png")
    examples = dataset.read_dataset(root, trigger="sks", class_word="mug").examples
    recipe = SimpleNamespace(
        train=SimpleNamespace(seed=0), prior=SimpleNamespace(mode="off"),
        data=Data(path=root, caption_dropout=0.0),
    )  # fmt: skip

    def shown(seed: int, sample: int) -> list[str]:
        recipe.train.seed = seed
        plan, placed = SimpleNamespace(recipe=recipe), SimpleNamespace(example=examples[sample])
        return [look(plan, placed, visit).prompt.caption for visit in range(40)]  # type: ignore[arg-type]

    assert shown(0, 0) == shown(0, 0) != shown(1, 0)
    assert shown(0, 0) != shown(0, 1)
    assert Counter(shown(0, 0)).keys() == set(examples[0].wordings)
    assert max(Counter(shown(0, 0)).values()) < 25


def test_equal_captions_of_a_product_are_remarked_where_one_checks_and_where_one_plans(tmp_path):
    root = folder(tmp_path / "photos", "1.png", "2.png", "3.png")
    write_jsonl(root / "metadata.jsonl", dict.fromkeys(["1.png", "2.png", "3.png"], "a photo of a mug"))
    said = "all 3 captions are 'a photo of a sks mug': what differs from picture to picture"
    assert [said in n.text for n in audit(root, trigger="sks", class_word="mug").notes][-1]
    planned = finetune.plan(finetune.Recipe(base="pocket", data={"path": root, "trigger": "sks", "class_word": "mug"}))
    assert sum(said in notice for notice in planned.notices) == 1
    write_jsonl(root / "metadata.jsonl", {"1.png": "a mug", "2.png": "a mug outside", "3.png": "a mug inside"})
    assert not caption_checks.remarks(audit(root, trigger="sks", class_word="mug").used, CaptionWords("sks", "mug"))


def test_a_style_with_few_different_captions_is_remarked(tmp_path):
    root = folder(tmp_path / "icons", *(f"{i}.png" for i in range(5)))
    write_jsonl(root / "metadata.jsonl", {f"{i}.png": "a star" if i else "a house" for i in range(5)})
    notes = audit(root, trigger="sks", kind="style").notes
    assert any("only 2 different captions for 5 pictures of a style" in n.text for n in notes)
