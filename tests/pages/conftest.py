"""One browser for all page tests of a process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from support import report_runs
from support.browser import launched


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A short real run that ended with its verdict: not learnt. To be read only."""
    return report_runs.trained(tmp_path_factory.mktemp("report") / "mug run")
