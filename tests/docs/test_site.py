"""The site of the pages for users: builds strictly, asks nobody for anything, and is right in a browser."""

import logging
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from support import ROOT
from support.browser import SCHEMES, WIDTHS_PX, launched, opened, overflow_px, serious


class Told(logging.Handler):
    """Keeps what mkdocs warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning of mkdocs fails it."""
    folder, told = tmp_path_factory.mktemp("site"), Told()
    logger = logging.getLogger("mkdocs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")  # the theme's word on its own future
        logger.addHandler(told)
        try:
            build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
        finally:
            logger.removeHandler(told)
    assert not told.said, told.said
    return folder


@pytest.fixture(scope="module")
def address(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


def test_every_page_of_the_folder_is_in_the_site(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    assert not list(site.rglob("*.py"))


def test_no_page_names_a_file_on_another_machine(site):
    """What a page loads by itself; links to follow are its reader's choice."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|link)\b[^>]*?(?:src|href)="?((?:https?:)?//[^"\s>]+)', text)
        assert not loaded, (page.name, loaded)


@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("page", ["index", "tutorial", "gpu", "recipes", "commands", "learns"])
def test_a_page_is_right_wide_and_narrow_light_and_dark(browser, address, page, width, scheme):
    with opened(browser, f"{address}/{page}.html", width, scheme) as shown:
        assert not serious(shown) and overflow_px(shown) == 0
        assert shown.evaluate("getComputedStyle(document.querySelector('.md-typeset h1')).fontFamily")


def test_a_page_is_found_and_reached_by_keys_alone(browser, address):
    with opened(browser, f"{address}/index.html") as shown:
        shown.keyboard.press("Tab")
        assert "Skip" in shown.evaluate("document.activeElement.innerText")
        shown.keyboard.press("f")
        shown.keyboard.type("not learnt")
        first = shown.locator(".md-search-result__link").first
        first.wait_for()
        shown.keyboard.press("ArrowDown")
        shown.keyboard.press("Enter")
        shown.wait_for_url(lambda url: "index.html" not in url)
        assert shown.locator("h1").inner_text()


def test_without_script_every_page_is_still_there(browser, address):
    with opened(browser, f"{address}/tutorial.html", script=False) as shown:
        assert shown.locator("h1").inner_text().startswith("From photos")
        assert shown.get_by_role("link", name="Captions").count()


def test_a_page_prints_without_its_menus_and_whole(browser, address):
    with opened(browser, f"{address}/tutorial.html", 760) as shown:
        shown.emulate_media(media="print")
        assert shown.locator("article h1").is_visible()
        assert not any(menu.is_visible() for menu in shown.locator(".md-sidebar, .md-header").all())
        blocks = "[...document.querySelectorAll('article > *')]"
        assert all(shown.evaluate(f"{blocks}.map(e => e.getBoundingClientRect().right <= innerWidth + 1)"))
        assert len(re.findall(rb"/Type\s*/Page\b", shown.pdf(format="A4"))) > 1
