"""One browser for all page tests of a process."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser
from support.browser import launched


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found
