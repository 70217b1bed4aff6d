"""A real browser, headless: opens a page from the disk, and says what is wrong with it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS_PX = (1280, 390)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
REQUIRED = "FINETUNE_BROWSER"
"""set where a browser must be there, as in CI: without one, tests fail instead of being skipped"""


def chromium() -> str:
    """Where the browser is; skips the test where there is none."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found and os.environ.get(REQUIRED):
        pytest.fail("no Chromium: apt-get install chromium")
    if not found:
        pytest.skip("no Chromium: apt-get install chromium")
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, page: Path | str, width: int = 1280, scheme: Literal["light", "dark"] = "light",
    script: bool = True,
) -> Iterator[Page]:  # fmt: skip
    """The page of a file, or at an address; fails where it asks anybody else for anything, or where a script fails."""
    address = page.resolve().as_uri() if isinstance(page, Path) else page
    asked: list[str] = []
    faults: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    try:
        shown = context.new_page()
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.goto(address)
        yield shown
        host = address.split("/")[2]
        strangers = [url for url in asked if not url.startswith("data:") and url.split("/")[2] != host]
        assert not strangers, strangers
        assert not faults, faults
    finally:
        context.close()


def serious(page: Page) -> list[str]:
    """What axe finds that hinders people, each with the first place."""
    found: list[Any] = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def overflow_px(page: Page) -> int:
    """How far the page is wider than its window: 0 unless one has to scroll sideways."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width
