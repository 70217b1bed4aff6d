"""A run's page in a real browser: wide and narrow, light and dark, by keyboard, without script, on paper, and large."""

import json
import re

import pytest
from support import report_runs as runs
from support.browser import SCHEMES, WIDTHS_PX, opened, overflow_px, serious

from finetune.pages.report import write_report
from finetune.reporting.owner import Ownership
from finetune.reporting.status import REPORT

HOSTILE = "<script>document.title='taken'</script><img src=http://example.org/x.png onerror=alert(1)> a sks cup"


@pytest.fixture(scope="module")
def good(trained_run, tmp_path_factory):
    """The page of a run that learnt, with a reservation."""
    run = runs.copied(trained_run, tmp_path_factory.mktemp("good") / "mug run")
    return write_report(runs.as_learnt(run, ("pictures without the trigger have changed (0.30): fewer train.steps",)))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of a run of 2,000 steps with 40 candidates, and 8 prompts at 512 px."""
    return write_report(runs.large(tmp_path_factory.mktemp("large") / "mug"))


@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_right_wide_and_narrow_light_and_dark(browser, good, trained_run, width, scheme):
    for page in (good, trained_run / REPORT):
        with opened(browser, page, width, scheme) as shown:
            assert not serious(shown) and overflow_px(shown) == 0
            ink = shown.evaluate("getComputedStyle(document.querySelector('svg.figure text')).fill")
            assert (ink == "rgb(240, 237, 230)") == (scheme == "dark"), "curves follow the scheme"


def test_the_keyboard_reaches_the_sliders_and_the_details_and_moves_them(browser, good):
    with opened(browser, good) as shown:
        seen = []
        for _ in range(12):
            shown.keyboard.press("Tab")
            seen.append(shown.evaluate("document.activeElement.tagName + '.' + (document.activeElement.type || '')"))
            if seen[-1] == "INPUT.range" and seen.count("INPUT.range") == 1:
                before = visible_share(shown)
                shown.keyboard.press("ArrowLeft")
                shown.keyboard.press("ArrowLeft")
                assert visible_share(shown) > before
        assert seen[:3] == ["A.", "INPUT.range", "INPUT.range"] and "SUMMARY." in seen
        shown.locator("#recipe summary").focus()
        shown.keyboard.press("Enter")
        assert shown.locator("#recipe details").get_attribute("open") is not None


def visible_share(shown):
    """Of the picture after, how much of it stands to the right of the slider."""
    clip = shown.evaluate("getComputedStyle(document.querySelector('.halves .after')).clipPath")
    return 100 - float(re.search(r"([\d.]+)%\)", clip)[1])


def test_without_script_all_can_be_read(browser, good):
    with opened(browser, good, script=False) as shown:
        first, second = (shown.locator(f".pair .{side} img").first.bounding_box() for side in ("before", "after"))
        assert first["x"] + first["width"] <= second["x"] and first["y"] == second["y"], "side by side"
        assert not shown.locator(".pair input").first.is_visible()
        shown.locator("#recipe summary").click()
        assert shown.locator("#recipe details table").is_visible()
        assert shown.locator("#answer-file").is_visible()


def test_printed_it_loses_nothing(browser, good):
    with opened(browser, good) as shown:
        paper = shown.pdf(format="A4")
        assert paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") > 1
        shown.emulate_media(media="print")
        shown.set_viewport_size({"width": 700, "height": 900})
        assert overflow_px(shown) == 0
        first, second = (shown.locator(f".pair .{side} img").first.bounding_box() for side in ("before", "after"))
        assert first["x"] + first["width"] <= second["x"], "no slider on paper: side by side"
        cut = shown.evaluate(
            "[...document.querySelectorAll('.scroll, pre')].filter(e => e.scrollWidth > e.clientWidth + 1"
            " && getComputedStyle(e).overflowX != 'visible').length"
        )
        assert cut == 0


def test_prompts_and_captions_with_html_are_shown_as_text(browser, trained_run, tmp_path):
    run = runs.copied(trained_run, tmp_path / HOSTILE[8:14])
    runs.edited(run, lambda told: {**told, **{k: HOSTILE for k in ("text", "reasons") if k in told}}
                if told["event"] in ("evaluated", "warned", "note") else told)  # fmt: skip
    runs.edited(run, lambda told: {**told, "reasons": [HOSTILE]} if told["event"] == "evaluated" else told)
    runs.recorded(run, reason=HOSTILE, device=HOSTILE)
    recipe = (run / "recipe.toml").read_text()
    data = tmp_path / "data"
    data.mkdir()
    for n in range(2):
        runs.texture(n, 64).save(data / f"{n}.png")
        (data / f"{n}.txt").write_text(f"{HOSTILE} {n}")
    (run / "recipe.toml").write_text(re.sub(r'path = ".*"', f"path = {json.dumps(str(data))}", recipe)
                                     .replace('name = "mug"', f"name = {json.dumps(HOSTILE)}"))  # fmt: skip
    with opened(browser, write_report(run)) as shown:
        assert shown.title().startswith(HOSTILE) and shown.locator("h1").inner_text() == HOSTILE
        assert HOSTILE in shown.locator("#data figcaption").first.inner_text()
        assert shown.locator("img:not([src^='data:'])").count() == 0 and shown.locator("script").count() == 1


def test_a_large_run_is_a_page_below_eight_megabytes(browser, large):
    assert large.stat().st_size < 8e6
    with opened(browser, large, 390) as shown:
        assert not serious(shown) and overflow_px(shown) == 0
        assert shown.locator("#candidates tbody tr").count() == 40
        assert shown.locator("#before-after .pair").count() == 8
        assert shown.locator("#steps thead th").count() == 9, "the prompt, and eight of 41 steps"
        assert "33 more steps" in shown.locator("#steps caption").inner_text()
        assert shown.locator("#data .pictures > li").count() == 48
        assert "12 more pictures" in shown.locator("#data").inner_text()
        assert shown.locator("#layers dt").count() == 20


QUESTIONS = [
    # what a person asks who never trained a model, where it is answered, of a good run, of a bad one
    ("Did it learn?", "#answer-learnt", "Yes", "No"),
    ("How surely?", "#verdict .banner", "9 of 9 prompts", "of 4 prompts"),
    ("Is it good?", "#answer-good", "Mostly", "No"),
    ("Which file do I send to the designer?", "#answer-file .short", "mug.safetensors", "None"),
    ("Where is that file, how large is it?", "#use-file", "adapter", "adapter"),
    ("What do I write into the prompt?", "#use-trigger", "sks", "sks"),
    ("Show me a prompt that works.", "#use-prompt", "a sks cup on a red background", "a sks cup"),
    ("How strong do I set it?", "#use-weight", "1 is as it was trained", "1 is as it was trained"),
    ("What should I do about the warning?", "#todo", "fewer train.steps", "more train.steps"),
    ("What did it look like before?", "#before-after", "before training", "before training"),
    ("Do its pictures look like mine?", "#score-likeness", "Very alike", "How much the pictures look like yours"),
    ("Do other prompts still work?", "#score-drift", "Unchanged", "How much pictures have changed"),
    ("Does it copy my pictures?", "#score-memorisation", "No copies", "Whether training pictures are copied"),
    ("What was it trained on?", "#data", "pictures from", "pictures from"),
    ("May I use those pictures?", "#data-licence", "Licence of the pictures: CC0", "Licence of the pictures: CC0"),
    ("Was the file checked?", "#verified", "fresh base", "fresh base"),
    ("Is there an earlier step that I could take?", "#candidates", "@3", "@3"),
    ("How do I make it again?", "#recipe .command", "train(recipe=", "train(recipe="),
    ("How do I see this from home?", "#watch", "python -m http.server", "python -m http.server"),
]


def test_a_person_who_never_trained_a_model_finds_each_answer(browser, good, trained_run):
    for page, column in ((good, 2), (trained_run / REPORT, 3)):
        with opened(browser, page) as shown:
            said = {row[0]: shown.locator(row[1]).first.inner_text() for row in QUESTIONS}
        assert not [(row[0], said[row[0]]) for row in QUESTIONS if row[column] not in said[row[0]]]


@pytest.fixture(scope="module")
def unfinished(trained_run, tmp_path_factory):
    """The page of a run as it was after three of six steps."""
    run = runs.before(runs.copied(trained_run, tmp_path_factory.mktemp("unfinished") / "run"), 3)
    ownership = Ownership(run)
    ownership.take()
    yield write_report(run)
    ownership.release()


@pytest.mark.parametrize("script", [True, False])
def test_a_page_of_a_run_that_goes_on_reloads_itself_with_and_without_script(browser, unfinished, tmp_path, script):
    soon = tmp_path / "soon.html"
    written = unfinished.read_text(encoding="utf-8")
    soon.write_text(written.replace('content="30"', 'content="1"').replace('data-seconds="30"', 'data-seconds="1"'))
    with opened(browser, soon, script=script) as shown, shown.expect_event("load"):
        assert "Step 3 of 6" in shown.locator(".banner").inner_text()


def test_reloading_can_be_stopped(browser, unfinished):
    with opened(browser, unfinished, 390, "dark") as shown:
        assert not serious(shown) and overflow_px(shown) == 0
        assert shown.locator("#answer-file .short").inner_text() == "None yet"
        shown.locator("#reload").click()
        assert shown.locator("#reload").inner_text() == "Go on reloading"
