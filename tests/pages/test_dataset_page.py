"""The page of `check`, in a browser: what will be learnt is seen, whatever files and captions hold."""

import base64
import io
import re

import pytest
from PIL import Image
from support.nasty_folder import encoded, picture

from finetune.data.audit import audit
from finetune.data.buckets import Bucket, fit, plan_buckets
from finetune.data.dataset import assign_buckets
from finetune.data.decode import open_rgb
from finetune.pages import dataset
from finetune.pages.text import plain_text, shown_text

HOSTILE = "<script>document.title='taken'</script><img src=http://example.org/x.png onerror=alert(1)>"
TURNED = "sks mug \u202egpj.exe\u0007 \u200f"


@pytest.fixture
def wide(tmp_path):
    """One picture, twice as wide as high, red at its left and right ends, with its caption."""
    image = Image.new("RGB", (400, 200), "teal")
    image.paste((255, 0, 0), (0, 0, 60, 200)), image.paste((255, 0, 0), (340, 0, 400, 200))
    image.save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("a sks mug on a table")
    return tmp_path


def placed(folder, resolution=128, max_aspect=1):
    buckets = plan_buckets(resolution * resolution, 64, max_aspect)
    return assign_buckets(audit(folder).used, buckets)


def inside(markup):
    """The first picture of a markup, decoded."""
    body = re.search(r'src="data:image/\w+;base64,([^"]+)"', str(markup))[1]
    return Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")


def test_a_picture_is_shown_as_the_crop_leaves_it(wide):
    [one] = placed(wide)
    shown = inside(dataset.cropped(one, 100))
    expected = fit(open_rgb(wide / "wide.png"), Bucket(128, 128)).resize((100, 100), Image.Resampling.LANCZOS)
    assert shown.size == (100, 100) and shown.getpixel((1, 50)) == (0, 128, 128), "the red ends are cut off"
    assert all(low == high for low, high in zip(shown.getextrema(), expected.getextrema(), strict=True))


def test_the_caption_is_beneath_it_with_its_author_and_the_cut(wide):
    shown = dataset.cropped(placed(wide)[0], 100, "sks")
    assert "<mark>sks</mark> mug on a table" in shown and "by a person" in shown and "50 % cut off" in shown


def test_a_file_that_cannot_be_read_costs_its_picture_only(wide):
    [one] = placed(wide)
    (wide / "wide.png").write_bytes(encoded(picture(1), "PNG")[:900])
    shown = dataset.cropped(one, 100)
    assert "No picture: truncated" in shown and "a sks mug" in shown and "<img" not in shown


def test_texts_of_others_do_nothing_hide_nothing_and_turn_nothing_but_themselves():
    shown = shown_text(HOSTILE + TURNED, "sks")
    assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown
    for code in ("U+202E", "U+0007", "U+200F"):
        assert f">{code}</code>" in shown
    assert not set("\u202e\u0007\u200f") & set(shown) and shown.startswith("<bdi>") and shown.endswith("</bdi>")
    assert plain_text("a\u202eb\ud800") == "a[U+202E]b[U+D800]"


def test_the_trigger_is_marked_as_a_whole_word_and_its_own_signs_are_text():
    assert shown_text("SKS sksy sks", "sks") == "<bdi><mark>SKS</mark> sksy <mark>sks</mark></bdi>"
    assert shown_text("a <b> cup", "<b>") == "<bdi>a <mark>&lt;b&gt;</mark> cup</bdi>"


def test_letters_of_all_scripts_stay_and_a_long_text_says_how_much_more_there_is():
    family, persian = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert shown_text(f"{family} {persian} 杯子 é") == f"<bdi>{family} {persian} 杯子 é</bdi>"
    assert "(and 3,000 more characters)" in shown_text("x" * 5000) and len(shown_text("x" * 5000)) < 2100
