"""A vocabulary and a CLIP caption pictures: what varies is said, what the trigger stands for is not."""

import icons
import numpy as np
import pytest
from PIL import Image

from finetune.captioning.choice import CaptionerChoice
from finetune.captioning.views import cut, views_of
from finetune.captioning.vocabulary import Vocabulary, put_together, read_vocabulary
from finetune.captioning.zero_shot import ZeroShot
from finetune.data.text.wording import CaptionWords
from finetune.errors import DataError, InputError

POCKET = read_vocabulary("pocket")
GROUNDS = ("yellow", "black", "purple")


def disc(ground: tuple[int, int, int], px: int = 96) -> Image.Image:
    y, x = np.mgrid[:px, :px] - px / 2
    inside = (x**2 + y**2 < (px / 4) ** 2)[..., None]
    return Image.fromarray(np.where(inside, (90, 40, 130), ground).astype(np.uint8))


def test_the_pocket_vocabulary_is_the_pocket_world_in_its_own_words():
    assert POCKET.lists["objects"] == tuple(f"{icons.article(name)} {name}" for name in icons.OBJECTS)
    assert POCKET.lists["settings"] == tuple(f"{icons.article(name)} {name} background" for name in icons.COLOURS)
    for name, colour in POCKET.colours().items():
        assert icons.COLOURS[name.split()[1]] == colour


def test_of_a_product_the_ground_is_said_and_nothing_of_its_looks(tmp_path):
    files = [tmp_path / f"{name}.png" for name in GROUNDS]
    for file in files:
        disc(icons.COLOURS[file.stem]).save(file)
    captioner = ZeroShot(POCKET, CaptionWords("sks", "handbag"))
    captioner.check(files)  # its object is known: that the eyes do not know it is no matter
    assert [one.text for one in captioner(files)] == [f"a sks handbag on a {name} background" for name in GROUNDS]


def test_pictures_of_another_world_are_refused_when_objects_would_be_named(tmp_path):
    file = tmp_path / "disc.png"
    disc(icons.COLOURS["teal"]).save(file)
    with pytest.raises(DataError, match="does not cover these pictures"):
        ZeroShot(POCKET, CaptionWords("sks", kind="style")).check([file])


@pytest.mark.skipif(not icons.FONT.is_file(), reason="no emoji font")
def test_of_a_style_the_object_is_said_and_not_the_ground(tmp_path):
    names = ("strawberry", "owl", "crown", "grapes")
    for name in names:
        ground = icons.Ground("plain", ("blue",), (0, 0, 0), False)
        shown = icons.Scene((icons.Placed(name, 0.5, 0.4, 0.5),), ground, "")
        Image.fromarray(icons.render(shown, 128)).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in names]
    captioner = ZeroShot(POCKET, CaptionWords("sks", kind="style"))
    captioner.check(files)
    assert [one.text for one in captioner(files)] == [
        "a strawberry, sks style", "an owl, sks style", "a crown, sks style", "some grapes, sks style",
    ]  # fmt: skip
    assert ZeroShot(POCKET, CaptionWords())(files[:1])[0].text == "a strawberry on a blue background"
    strict = POCKET.model_copy(update={"unsure_below": 0.999})
    assert ZeroShot(strict, CaptionWords("sks", kind="style"))(files[:1])[0].problem == "not sure"


def test_an_object_on_a_plain_ground_is_laid_on_others_and_a_photo_is_not_cut():
    seen = views_of(disc((250, 220, 70)), {"white": (255, 255, 255)})
    assert [view.ground for view in seen] == ["", "", "white"]
    laid = np.asarray(seen[2].picture)
    assert tuple(laid[0, 0]) == (255, 255, 255) and tuple(laid[len(laid) // 2, len(laid) // 2]) == (90, 40, 130)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert [view.picture for view in views_of(noise, {"white": (255, 255, 255)})] == [noise]
    assert cut(Image.new("RGB", (32, 32), "white")) is None


def test_a_caption_is_filled_with_names_and_the_article_that_fits():
    words = CaptionWords("oka", "mug")
    assert put_together("a {trigger} {class_word} on {where}", {"where": "a table"}, words) == "an oka mug on a table"


WRONG = {
    "captions.style names {nose}": {"captions": {"style": "{objects} {nose}"}},
    "captions.photo is not one of": {"captions": {"photo": "{objects}"}},
    "captions.style names no list": {"captions": {"style": "a thing"}},
    "lists.objects: names repeat": {"lists": {"objects": ["a", "a"]}},
    "hold different lists": {"judged": [{"phrases": ["{objects}", "a picture"]}]},
    "{nose} is not a list": {"judged": [{"phrases": ["{nose}"]}]},
    "'a sky' is in no list": {"grounds": {"a sky": "#0000ff"}},
}


@pytest.mark.parametrize("why", WRONG)
def test_a_vocabulary_that_contradicts_itself_is_refused(tmp_path, why):
    import tomlkit

    sound = {"judge": "pocket", "lists": {"objects": ["a", "b"]}, "captions": {"style": "{objects}"}}
    (tmp_path / "v.toml").write_text(tomlkit.dumps(sound))
    assert isinstance(read_vocabulary(str(tmp_path / "v.toml")), Vocabulary)
    (tmp_path / "v.toml").write_text(tomlkit.dumps(sound | WRONG[why]))
    with pytest.raises(DataError) as refused:
        read_vocabulary(str(tmp_path / "v.toml"))
    assert why in refused.value.problem


def test_a_vocabulary_without_a_judge_asks_for_one(tmp_path):
    (tmp_path / "v.toml").write_text('lists.objects = ["a", "b"]\ncaptions.style = "{objects}"\n')
    with pytest.raises(DataError, match="names no judge"):
        ZeroShot(read_vocabulary(str(tmp_path / "v.toml")), CaptionWords("sks", kind="style"))


def test_one_captioner_is_chosen():
    for wrong in (CaptionerChoice(), CaptionerChoice("pocket", "cat {image}"), CaptionerChoice("", "cat {image}", "x")):
        with pytest.raises(InputError):
            wrong.check()
    CaptionerChoice("pocket", judge="x").check()
