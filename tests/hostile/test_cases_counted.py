"""How many hostile inputs are tried: the table only grows."""

from pathlib import Path

import pytest

AT_LEAST = 400
FOLDER = Path(__file__).parent


def test_the_table_of_hostile_inputs_is_long_enough(request: pytest.FixtureRequest) -> None:
    """Of a session that collected the whole folder, which each process of a parallel one does."""
    found = [item for item in request.session.items if item.path.parent == FOLDER]
    missing = {path.name for path in FOLDER.glob("test_*.py")} - {item.path.name for item in found}
    if missing:
        pytest.skip(f"not collected here: {', '.join(sorted(missing))}")
    assert len(found) >= AT_LEAST
