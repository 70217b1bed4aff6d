"""Twenty starts of one run at once: one trains, the others say who is in their way, a kill leaves the folder free."""

import os
import signal
import time
from pathlib import Path

from support.hostile import children

from finetune.reporting.owner import Ownership, owner_of
from finetune.reporting.status import read_status

STARTS = 20
RECIPE = """
base = "pocket"
[data]
path = "photos"
trigger = "sks"
resolution = 32
[adapter]
rank = 1
targets = ["attn2.to_q"]
[train]
steps = 1000000
checkpoint_every = 1000000
precision = "fp32"
[sample]
every = 0
[evaluate]
count = 0
[report]
to = []
"""


def test_of_twenty_starts_one_trains_and_its_kill_lets_the_next_in(place: Path) -> None:
    (place / "long.toml").write_text(RECIPE)
    with children(["train", "long.toml", "--out", "run"], place, STARTS) as started:
        while len(started.running()) > 1:
            time.sleep(0.05)
        [winner] = started.running()
        owner = owner_of(place / "run")
        assert owner is not None and owner.pid == winner
        os.kill(winner, signal.SIGKILL)
        ended = started.ended()
    refused = [one for one in ended if one.code == 2]
    assert len(refused) == STARTS - 1 and [one.code for one in ended if one not in refused] == [-signal.SIGKILL]
    for one in refused:
        assert "belongs to a run that is going on: process" in one.err and "try:" in one.err, one.text
        assert not one.traceback
    assert owner_of(place / "run") is None and read_status(place / "run").state == "cut off"
    next_one = Ownership(place / "run")
    assert next_one.take() == ""
    next_one.release()
