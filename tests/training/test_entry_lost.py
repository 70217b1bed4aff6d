"""An entry of the cache that is damaged or gone while a run trains: the run stops, saves, and goes on as if nothing had
been."""

import shutil
from pathlib import Path

import pytest
from support.runs import outcome, saved_bytes, short, train

from finetune.encoding.sizes import DIGEST_BYTES
from finetune.encoding.stored import EntryLost
from finetune.events import Event, Note, Saved, Stepped

STEPS = 10


def spoilt(cache: Path) -> None:
    for shard in cache.rglob("image/*.shard"):
        content = bytearray(shard.read_bytes())
        content[DIGEST_BYTES + 8] ^= 1  # the first entry's header
        content[-1] ^= 1  # the last entry's last number
        shard.write_bytes(content)


def gone(cache: Path) -> None:
    shutil.rmtree(cache)


@pytest.mark.parametrize("fault", [spoilt, gone])
def test_the_run_stops_where_the_entry_is_due_and_resumed_is_the_same_to_the_bit(
    fault: object, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.encoding.sizes.HELD_ENTRIES", 1)
    loaded = short(data, data__cache=tmp_path / "cache", train__steps=STEPS, train__checkpoint_every=STEPS)
    train(loaded, tmp_path / "whole")
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Stepped) and event.step == 2:
            fault(tmp_path / "cache")  # type: ignore[operator]

    with pytest.raises(EntryLost, match="has gone from the cache") as lost:
        train(loaded, tmp_path / "out", listen)
    assert lost.value.exit_code == 2 and "resume" in lost.value.hint
    assert outcome(tmp_path / "out").startswith("failed an entry has gone")
    taken = max(event.step for event in seen if isinstance(event, Stepped))
    assert 2 <= taken < STEPS and any(isinstance(event, Saved) and event.step == taken for event in seen)
    notes: list[Event] = []
    train(loaded, tmp_path / "out", notes.append, resume=True)
    assert [note for note in notes if isinstance(note, Note) and "found, 0 encoded" in note[0]] == []
    assert saved_bytes(tmp_path / "out", STEPS) == saved_bytes(tmp_path / "whole", STEPS)
