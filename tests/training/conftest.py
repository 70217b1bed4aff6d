"""What tests of whole runs share: two pictures, a small base and one finished run, which nobody may change."""

from pathlib import Path

import pytest
from support.bases import tiny_base
from support.photos import photos
from support.runs import Done, short, train

from finetune.events import Event


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos") / "raw", ((64, 64), (64, 60)), flat=True)


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "sd15", "sd15")


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A whole run, with samples at its beginning and its end."""
    out = tmp_path_factory.mktemp("finished") / "mug run"
    loaded = short(data, train__steps=40, train__checkpoint_every=100, sample__every=40)
    events: list[Event] = []
    return Done(out, train(loaded, out, events.append), events, loaded)
