"""What the audit found, on the page of `check`: flags to filter by, the repair as a command, right in a browser."""

import pytest
from PIL import ImageFilter
from support.browser import SCHEMES, WIDTHS_PX, opened, overflow_px, serious
from support.scenes import as_jpeg, barred, scene, scenes

from finetune.data.audit import audit
from finetune.data.quality.faults import find_faults
from finetune.pages.dataset import NextStep, dataset_page
from finetune.pages.html import write_page
from finetune.planning.encoders import encoder_reports
from finetune.planning.preview import preview

STEP = NextStep("", "", "finetune check x", "finetune prepare x --out DIR --trigger sks --fix")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = scenes(tmp_path_factory.mktemp("set") / "photos", 3)
    for name, image in (
        ("copy <b>.jpg", as_jpeg(scene(0), 60)), ("bars.png", barred(scene(7), 24)),
        ("soft.png", scene(5).filter(ImageFilter.GaussianBlur(6))),
    ):  # fmt: skip
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a sks mug called {name[:-4]}")
    found = audit(folder, trigger="sks", class_word="mug")
    view = preview(found, "pocket", 64, 2)
    encoders = encoder_reports("pocket", [e.caption for e in found.used], "sks")
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(dataset_page(found, view, STEP, find_faults(found, 64), encoders).text, path)
    return path


@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_right_wide_and_narrow_light_and_dark(browser, page, width, scheme):
    with opened(browser, page, width, scheme) as shown:
        assert not serious(shown) and overflow_px(shown) == 0


def test_what_was_found_stands_on_top_with_the_command_that_repairs_it(browser, page):
    with opened(browser, page) as shown:
        section = shown.locator("section[aria-labelledby=audit]").inner_text()
        assert "1 near-duplicate: copy <b>.jpg (like 0.png)" in section and STEP.fix in section
        assert "leave out 1 near-duplicate and crop the border of 1 image" in section
        assert "2 tokens (sk | s)" in shown.locator("dl").inner_text()
        cards = shown.locator(".example").all_inner_texts()
        assert "Plain border: top 24 px, bottom 24 px" in cards[0] and "Near-duplicate: like 0.png" in cards[1]


def test_flags_filter_by_keyboard_alone(browser, page):
    with opened(browser, page) as shown:
        shown.locator("#words").focus()
        shown.keyboard.press("Tab"), shown.keyboard.press("Space")
        assert shown.locator(":focus").get_attribute("value") == "copy"
        names = shown.locator(".example:visible .name").all_inner_texts()
        assert names == ["copy <b>.jpg"] and shown.locator("#found").inner_text() == "1 of 6 pictures"
        shown.locator("#words").fill("soft")
        assert shown.locator("#found").inner_text() == "0 of 6 pictures"
