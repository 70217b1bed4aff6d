"""A comparison's page: which to take, every picture under its prompt, and right in any window."""

from pathlib import Path

import pytest
from PIL import Image
from support.browser import SCHEMES, WIDTHS_PX, opened, overflow_px, serious

from finetune.cli.wording import worded_here
from finetune.evaluation.compare import Column, Compared, Comparison, ComparisonRequest, ComparisonRow
from finetune.events import Score
from finetune.pages.comparison import page_text, repeated
from finetune.pages.html import write_page
from finetune.sampling.request import SampleRequest
from finetune.sampling.words import AdapterInUse

HOSTILE = "a <b>mug</b> <script>document.title='taken'</script> \u202e"


def row(name: str, weight: float, likeness: float | None, prompts: list[str]) -> ComparisonRow:
    requests = tuple(SampleRequest(p, n, "", 10, 3.0, 64, 64) for n, p in enumerate(prompts))
    pictures = tuple(Image.new("RGB", (64, 64), (60 * n, 99, 99)) for n in range(len(prompts)))
    words = AdapterInUse(Path(f"{name}.safetensors"), 1.0, "sks", "mug")
    adapter = Compared(name, name, Path(f"a b/{name}.safetensors"), words) if name else None
    scores = {} if likeness is None else {"likeness": Score(likeness, likeness - 0.1, likeness + 0.1)}
    return ComparisonRow(adapter, weight, requests, pictures, "9/10" if scores else "", scores)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = [HOSTILE, *(f"a sks mug on a {colour} background" for colour in ("red", "blue", "teal", "pink"))] * 2
    rows = (row("", 0, None, prompts), row("<i>mug</i>@5", 0.6, 0.4, prompts), row("mug@10", 1.0, 0.9, prompts))
    found = Comparison("pocket", tuple(Column(p, n) for n, p in enumerate(prompts)), rows, 2, "likeness 0.90")
    file = tmp_path_factory.mktemp("page") / "comparison.html"
    write_page(page_text(found, ComparisonRequest(())), file)
    return file


@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_right_wide_and_narrow_light_and_dark(browser, page: Path, width: int, scheme) -> None:
    with opened(browser, page, width, scheme) as shown:
        assert not serious(shown) and overflow_px(shown) == 0
        assert shown.locator("#take strong").inner_text() == "Take mug@10 at 1"
        assert shown.locator("#pictures img").count() == 30 and shown.locator("#pictures i, #pictures b").count() == 0
        # a picture beside its row's name is inside the window's part of the table, however narrow it is
        first = shown.locator("#pictures tbody tr").first.locator("img").first.bounding_box()
        assert first and first["x"] + first["width"] <= width


def test_names_stay_in_sight_when_pictures_are_scrolled(browser, page: Path) -> None:
    with opened(browser, page, 390) as shown:
        cells = shown.locator(".cells")
        cells.focus()
        before = shown.locator("#pictures tbody th").first.bounding_box()
        shown.keyboard.press("End")
        for _ in range(30):
            shown.keyboard.press("ArrowRight")
        for _ in range(100):  # a smooth scroll takes its time
            if cells.evaluate("cells => cells.scrollLeft") > 100:
                break
            shown.wait_for_timeout(50)
        assert cells.evaluate("cells => cells.scrollLeft") > 100
        after = shown.locator("#pictures tbody th").first.bounding_box()
        assert before and after and abs(before["x"] - after["x"]) < 2


def test_the_command_beside_a_picture_is_one_for_a_shell(page: Path) -> None:
    import shlex

    one = row("mug", 0.6, 0.4, ['a sks mug\'s "lid"'])
    words = shlex.split(worded_here(repeated("pocket", one, one.requests[0])))
    assert words[:4] == ["finetune", "sample", "--base", "pocket"] and "a b/mug.safetensors:0.6" in words
    assert 'a sks mug\'s "lid"' in words


def test_it_prints_with_every_row_and_nothing_cut_off(browser, page: Path) -> None:
    with opened(browser, page, 760) as shown:
        shown.emulate_media(media="print")
        assert shown.locator("#pictures details").first.is_hidden()
        assert shown.locator("#pictures tbody tr").count() == 3 and overflow_px(shown) >= 0
        assert shown.pdf(format="A4", landscape=True).startswith(b"%PDF")


def test_without_a_verdict_it_says_so(browser, tmp_path: Path) -> None:
    rows = (row("", 0, None, ["a star"]), row("mug", 1.0, None, ["a star"]))
    found = Comparison("pocket", (Column("a star", 0),), rows, None, "not judged: nobody knows the pictures")
    write_page(page_text(found, ComparisonRequest(())), tmp_path / "c.html")
    with opened(browser, tmp_path / "c.html", script=False) as shown:
        assert shown.locator("#take").inner_text().startswith("Judge by the pictures")
        assert shown.locator("#scores").count() == 0
