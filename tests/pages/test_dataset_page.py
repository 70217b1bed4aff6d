"""The page of `check`, in a browser: what will be learnt is seen, whatever files and captions hold."""

import base64
import io
import json
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from support.browser import SCHEMES, WIDTHS_PX, opened, overflow_px, serious
from support.nasty_folder import build, encoded, picture, write_jsonl

from finetune.data.audit import audit
from finetune.data.dataset import assign_buckets
from finetune.data.folder import Rejected
from finetune.data.images.buckets import Bucket, fit, plan_buckets
from finetune.data.images.decode import open_rgb
from finetune.data.images.diagnose import Reason
from finetune.data.text.captions import CaptionNote
from finetune.data.text.wording import CaptionOrigin
from finetune.errors import RunError
from finetune.pages import dataset
from finetune.pages.dataset import NextStep
from finetune.pages.html import write_page
from finetune.pages.text import plain_text, shown_text
from finetune.planning.preview import preview

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


def masked_folder(folder, box=(100, 50, 250, 200), size=(400, 200)):
    """Two pictures with white walls, the first of which has a mask."""
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", size, "white" if name == "a" else "beige").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a sks mug, {name}")
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(folder / "a-mask.png")
    return folder


def test_what_is_outside_of_a_mask_is_a_pale_chequerboard_where_the_crop_leaves_it(tmp_path):
    """Of 400 x 200 the middle is kept, so that the left edge of the mask is cut off at it."""
    first, second = placed(masked_folder(tmp_path / "set"))
    shown = dataset._pictures(first, 100)
    image = np.asarray(inside(f'src="{shown.masked.source}"'), int)
    assert image.shape == (100, 100, 3) and shown.share == pytest.approx(0.75 * 0.75, abs=0.01)
    assert (image[30:, :70] >= 250).all(), "inside it is the picture"
    outside = np.concatenate([image[:20].reshape(-1, 3), image[:, 80:].reshape(-1, 3)])
    assert outside.min() < 225 and outside.max() > 245 and 0.4 < (outside[:, 0] < 235).mean() < 0.6, "two greys"
    assert dataset._pictures(second, 100).masked is None


def test_a_run_shows_what_its_masks_leave_of_a_picture_where_they_count(tmp_path):
    first, second = placed(masked_folder(tmp_path / "set"))
    for one, masked in ((first, True), (first, False), (second, True)):
        shown, expected = dataset.cropped(one, 100, masked=masked), dataset._pictures(one, 100)
        dimmed = masked and one is first
        assert (expected.masked.source if dimmed else expected.kept.source) in shown
        assert ("its mask: 56 % is learnt" in shown) == dimmed


def test_masks_are_seen_counted_and_filtered_on_the_page(browser, tmp_path):
    page = stored(page_of(masked_folder(tmp_path / "set"), resolution=128), tmp_path / "page.html")
    for width in WIDTHS_PX:
        with opened(browser, page, width) as shown:
            assert not serious(shown) and overflow_px(shown) == 0
            assert card(shown, "a.png").locator(".seen img").count() == 2
            assert re.search(r"\d+ % is learnt", card(shown, "a.png").inner_text())
            assert card(shown, "b.png").locator(".seen img").count() == 1
            assert "No mask: all of it is learnt" in card(shown, "b.png").inner_text()
            assert "1 of 2 pictures have one" in shown.locator("dl").inner_text()
            shown.get_by_label("without a mask (1)").check()
            assert names_shown(shown) == ["b.png"]
    none = page_of(wide_alone(tmp_path / "none"), resolution=128).text
    assert "mask" not in re.sub(r"<style>.*?</style>", "", none, flags=re.DOTALL)


def wide_alone(folder):
    folder.mkdir()
    Image.new("RGB", (200, 200), "teal").save(folder / "wide.png")
    (folder / "wide.txt").write_text("a sks mug")
    return folder


# --- the page -------------------------------------------------------------------------------------------------------


STEP = NextStep("remove these files", "finetune prepare x --out DIR", "finetune check x")
ALL_GOOD = NextStep("", "", "finetune check x")


def page_of(folder, base=None, resolution=64, step=ALL_GOOD, **words):
    found = audit(folder, **words)
    return dataset.dataset_page(found, preview(found, base, resolution, 2), step)


def stored(page, path):
    write_page(page.text, path)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Eight pictures: upright, wide, small, with a caption of everybody, hostile and long ones, one without trigger."""
    folder = tmp_path_factory.mktemp("set") / "a <i>mug \u202egum"
    folder.mkdir()
    names = [
        "tall.jpg",
        "wide.jpg",
        "small.jpg",
        "\u202egpj.<b>.png",
        "tab\there\x07.jpg",
        "five.jpg",
        "six.jpg",
        "plain.jpg",
    ]
    sizes = [(96, 160), (400, 120), (40, 40), (90, 90), (90, 90), (90, 90), (90, 90), (90, 90)]
    captions = ["a sks mug", "a sks mug far away", "a sks mug small", HOSTILE, TURNED,
                " ".join(["sks mug on wood"] * 60),                "a mug of nobody", "a sks mug on oak"]  # fmt: skip
    authors: list[CaptionOrigin] = ["written", "model", "filename", *("written",) * 5]
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        (folder / name).write_bytes(encoded(picture(i, size), "PNG" if name.endswith("png") else "JPEG"))
    rows = [{"file_name": n, "text": c, "caption_by": a} for n, c, a in zip(names, captions, authors, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    card = "trigger = 'sks'\nclass_word = 'mug'\nkind = 'product'\nlicense = '<u>CC0</u>'\nsource = 'my camera'"
    (folder / "dataset.toml").write_text(card + "\n[[rejected]]\nfile = 'x.heic'\nreason = 'animated'\ndetail = '<s>'")
    return stored(page_of(folder, base="pocket"), tmp_path_factory.mktemp("page") / "mixed.html")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """The page of the folder of all that users have, which is refused."""
    folder = tmp_path_factory.mktemp("nasty") / "photos"
    expected = build(folder)
    return stored(page_of(folder, step=STEP, trigger="sks", class_word="mug"), folder.parent / "page.html"), expected


@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_is_right_wide_and_narrow_light_and_dark(browser, mixed, nasty, width, scheme):
    for page in (mixed, nasty[0]):
        with opened(browser, page, width, scheme) as shown:
            shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert not serious(shown) and overflow_px(shown) == 0


def card(shown, name):
    return shown.locator(".example", has=shown.locator(".name", has_text=name))


def test_a_card_says_all_of_its_picture(browser, mixed):
    with opened(browser, mixed) as shown:
        wide, small, long, bare = (card(shown, n) for n in ("wide.jpg", "small.jpg", "five.jpg", "six.jpg"))
        assert "by a captioning model" in wide.inner_text() and "400 x 120 px, trained at 80 x 48" in wide.inner_text()
        assert "50 % is cut off" in wide.inner_text() and wide.locator("details img").is_visible()
        assert wide.locator("mark").first.inner_text() == "sks"
        assert "Enlarged 1.6 times" in small.inner_text() and "from the file name" in small.inner_text()
        assert re.search(r"\d+ tokens", long.inner_text()) and "which does not read" in long.inner_text()
        assert "Trigger missing" in bare.inner_text()
        small.locator("summary", has_text="2 wordings").click()
        assert small.locator("details li").all_inner_texts() == ["a sks mug small", "a photo of a sks mug small"]
        assert shown.locator(".name").all_inner_texts()[-3::2] == ["plain.jpg", "tall.jpg"], "the others come first"


def test_hostile_names_and_captions_are_text(browser, mixed):
    with opened(browser, mixed) as shown:
        assert shown.title() == "Dataset a <i>mug [U+202E]gum: 8 pictures"
        assert HOSTILE in shown.locator("body").inner_text() and "<u>CC0</u>" in shown.locator("dl").inner_text()
        assert card(shown, "gpj.<b>.png").locator(".name").inner_text() == "U+202Egpj.<b>.png"
        assert card(shown, "here").locator(".caption").inner_text() == "sks mug U+202Egpj.exeU+0007 U+200F"
        assert shown.locator("b, u, s, i").count() == 0 and not set("\u202e\x07\u200f") & set(shown.content())


def test_numbers_sizes_licence_source_and_what_was_left_out_are_there(browser, mixed):
    with opened(browser, mixed) as shown:
        numbers = shown.locator("dl").inner_text()
        assert "seen 8 = used 8 + rejected 0" in numbers and "sks in 6 of 8 captions" in numbers
        assert "6 by a person, 1 from the file name, 1 by a captioning model" in numbers and "my camera" in numbers
        assert "x.heic: animated: <s>" in shown.locator("main").inner_text()
        assert not re.findall("No base model|Nobody captioned", shown.content())
        rows = shown.locator("#sizes ~ .scroll tbody tr").all_inner_texts()
        assert sum(int(row.split("\t")[2]) for row in rows) == 8 and "80 x 48\t1\t50 %\t50 %" in rows[-1]


def test_what_is_wrong_stands_on_top_with_what_to_do(browser, nasty):
    page, expected = nasty
    with opened(browser, page) as shown:
        assert "Not ready to train: 17 rejected files" in shown.locator(".banner").inner_text()
        assert shown.locator(".banner pre").inner_text() == STEP.command
        rows = [row.split("\t") for row in shown.locator("tbody").first.locator("tr").all_inner_texts()]
        assert {name: why.partition(":")[0] for name, why, _ in rows} == expected.rejected
        assert all(todo for *_, todo in rows) and rows and shown.locator(".example").count() == len(expected.used)
        tops = [shown.locator(f"#{one}").bounding_box()["y"] for one in ("rejected", "notes", "counts", "pictures")]
        assert tops == sorted(tops)


def test_every_reason_has_its_remedy():
    assert set(dataset.REMEDIES) == set(get_args(Reason)) and set(dataset.AUTHORS) == set(get_args(CaptionOrigin))


def test_problems_are_named_where_nothing_can_be_shown(browser, tmp_path):
    (tmp_path / "empty").mkdir()
    found = replace(audit(tmp_path / "empty"), problems=("no <b>images</b>",))
    page = dataset.dataset_page(found, preview(found, None, 64, 2), STEP)
    with opened(browser, stored(page, tmp_path / "page.html")) as shown:
        assert shown.locator("#problems ~ ul li").inner_text() == "no <b>images</b>" and page.of == 0
        assert "1 problem" in shown.locator(".banner").inner_text() and not serious(shown)


def test_a_good_dataset_is_called_ready(browser, tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(2):
        (tmp_path / "set" / f"{i}.png").write_bytes(encoded(picture(i, (64, 64)), "PNG"))
    page = stored(page_of(tmp_path / "set", trigger="sks", class_word="mug"), tmp_path / "page.html")
    with opened(browser, page) as shown:
        assert "Ready to train: 2 pictures used" in shown.locator(".banner.good").inner_text()
        assert "7 wordings" in shown.locator(".example").first.inner_text()
        text = shown.locator("body").inner_text()
        assert "No base model was named" in text and "Nobody captioned 2 of these pictures" in text


# --- the filter, the keyboard, no script, paper ---------------------------------------------------------------------


def names_shown(shown):
    return shown.locator(".example:visible .name").all_inner_texts()


def test_the_filter_finds_by_text_and_by_flag(browser, mixed):
    with opened(browser, mixed) as shown:
        assert len(names_shown(shown)) == 8 and shown.locator("#found").inner_text() == "8 of 8 pictures"
        shown.locator("#words").fill("OAK")
        assert names_shown(shown) == ["plain.jpg"] and shown.locator("#found").inner_text() == "1 of 8 pictures"
        shown.locator("#words").fill("")
        shown.get_by_label("trigger missing (2)").check()
        assert len(names_shown(shown)) == 2 and "six.jpg" in names_shown(shown)
        shown.get_by_label("caption by a model (1)").check()
        assert len(names_shown(shown)) == 3 and "wide.jpg" in names_shown(shown), "any of the flags"


def test_all_can_be_done_by_keyboard(browser, mixed):
    with opened(browser, mixed) as shown:
        shown.keyboard.press("Tab"), shown.keyboard.press("Enter")
        assert shown.evaluate("document.activeElement.id") == "content"
        for _ in range(20):
            shown.keyboard.press("Tab")
            if shown.evaluate("document.activeElement.id") == "words":
                break
        shown.keyboard.type("small"), shown.keyboard.press("Enter")
        assert names_shown(shown) == ["small.jpg"]
        for _ in range(20):
            shown.keyboard.press("Tab")
            if shown.evaluate("document.activeElement.tagName") == "SUMMARY":
                break
        assert not shown.get_by_text("a photo of a sks mug small").is_visible()
        shown.keyboard.press("Enter")
        assert shown.get_by_text("a photo of a sks mug small").is_visible()


def test_without_script_all_is_read_and_no_filter_is_shown(browser, mixed):
    with opened(browser, mixed, script=False) as shown:
        assert not shown.locator("#filter").is_visible() and len(names_shown(shown)) == 8
        assert shown.locator(".example img:visible").count() >= 8


def test_on_paper_nothing_is_folded_away(browser, mixed):
    with opened(browser, mixed) as shown:
        shown.emulate_media(media="print")
        assert not shown.locator("#filter").is_visible()
        folded = shown.locator("details:not([open]) li").first
        assert folded.bounding_box()["height"] > 0 and overflow_px(shown) == 0


# --- large and broken folders ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A thousand small pictures of noise, the worst there is for JPEG, the last one without the trigger."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(1000):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png", compress_level=0)
    write_jsonl(folder / "metadata.jsonl", {f"{i}.png": f"a {'sks ' if i < 999 else ''}mug {i}" for i in range(1000)})
    (folder / "dataset.toml").write_text("trigger = 'sks'\nclass_word = 'mug'")
    found = audit(folder)
    return found, preview(found, None, 128, 1)


def test_a_thousand_pictures_stay_under_8_mb_and_one_is_open_at_a_time(thousand, monkeypatch):
    opened_images, most = [], [0]

    def counted(path, *more):
        image = open_rgb(path, *more)
        opened_images.append(weakref.ref(image))
        most[0] = max(most[0], sum(one() is not None for one in opened_images))
        return image

    monkeypatch.setattr(dataset, "open_rgb", counted)
    page = dataset.dataset_page(*thousand, ALL_GOOD)
    assert len(page.text.encode()) < 8_000_000 and page.of == 1000 and 100 < page.shown <= dataset.SHOWN
    assert most[0] <= 2, "the one before is let go when the next one is there"
    assert f"{page.shown} of 1,000 pictures are shown" in page.text and f"other {1000 - page.shown} are" in page.text
    assert page.text.count('<li class="card example"') == page.shown
    assert page.text.index(">999.png<") < page.text.index(">0.png<"), "what is to be looked at comes first"


def test_as_many_pictures_as_there_is_room_for(thousand, monkeypatch):
    found, seen = thousand
    few = replace(seen, rows=seen.rows[:20])
    monkeypatch.setattr(dataset, "SHOWN", 7)
    assert dataset.dataset_page(found, few, ALL_GOOD)[1:] == (7, 20)
    monkeypatch.setattr(dataset, "SHOWN", 500)
    whole = dataset.dataset_page(found, few, ALL_GOOD)
    card_bytes = len(whole.text) // 20
    monkeypatch.setattr(dataset, "ROWS_BYTES", 5 * card_bytes)
    assert whole[1:] == (20, 20) and 3 <= dataset.dataset_page(found, few, ALL_GOOD).shown <= 6


def test_long_lists_of_what_is_wrong_are_counted(thousand):
    found, seen = thousand
    many = replace(
        found, rejected=tuple(Rejected(f"r{i}", "corrupt", "x" * 5000) for i in range(900)),
        problems=tuple(f"problem {i}" for i in range(300)),
        notes=tuple(CaptionNote("", f"note {i}") for i in range(250)),
    )  # fmt: skip
    text = dataset.dataset_page(many, replace(seen, rows=seen.rows[:1]), STEP).text
    assert "And 700 more" in text and "And 100 more" in text and re.search(r"And 5\d more", text)
    assert len(text) < 1_500_000


def test_a_picture_that_went_away_costs_no_page(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    for i in range(3):
        (tmp_path / "set" / f"{i}.jpg").write_bytes(encoded(picture(i, (300, 90)), "JPEG"))
    found = audit(tmp_path / "set", trigger="sks", class_word="mug")
    (tmp_path / "set" / "1.jpg").unlink()
    page = dataset.dataset_page(found, preview(found, None, 64, 2), ALL_GOOD)
    assert page.shown == 3 and page.text.count("No picture: unreadable") == 1 and "could not be read" in page.text


def test_the_frame_shows_what_the_crop_keeps(wide):
    [one] = placed(wide)
    whole = dataset._framed(open_rgb(wide / "wide.png"), one.bucket, 100)
    pale = np.asarray(whole).min(axis=2) > 150
    assert whole.size == (100, 50) and pale[:, :24].all() and pale[:, 76:].all()
    assert abs(pale.mean() - one.crop_loss) < 0.02 and not pale[5:-5, 30:70].any()


# --- where the page is written --------------------------------------------------------------------------------------


def test_a_page_of_ours_is_written_again_and_nothing_else(tmp_path, wide, mixed):
    ours, theirs, folder = tmp_path / "ours.html", tmp_path.parent / "theirs.html", tmp_path / "folder"
    root = tmp_path / "set"
    root.mkdir(), folder.mkdir()
    ours.write_bytes(Path(mixed).read_bytes()), theirs.write_text('<meta name="generator" content="finder 2">')
    dataset.refuse_target(ours, root), dataset.refuse_target(tmp_path / "new.html", root)
    for target, said in (
        (theirs, "is not a page of a dataset"),
        (folder, "not a file"),
        (root / "x.html", "inside the dataset"),
    ):
        with pytest.raises(RunError, match=said):
            dataset.refuse_target(target, root)
