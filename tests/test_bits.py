"""Nothing that training computes has changed: losses, adapters and pictures of every family are the recorded ones."""

import json
from pathlib import Path

import bits
import pytest

RECORDED = json.loads(Path(bits.__file__).with_suffix(".json").read_text())


@pytest.mark.usefixtures("whole_judgement")
@pytest.mark.slow
@pytest.mark.parametrize("name", bits.RUNS)
def test_training_computes_what_it_did_to_the_bit(name: str, tmp_path: Path) -> None:
    known = RECORDED.get(bits.machine(), {})
    if name not in known:
        pytest.skip(f"recorded on {', '.join(RECORDED)}; compare two checkouts with `python tests/bits.py`")
    assert bits.record(name, tmp_path) == known[name]
