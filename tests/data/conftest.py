"""Photographs to make datasets of."""

from pathlib import Path

import pytest
from support.nasty_folder import encoded, picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four plain photographs without captions."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.jpg").write_bytes(encoded(picture(i, (96, 64 + 16 * i)), "JPEG"))
    return root
