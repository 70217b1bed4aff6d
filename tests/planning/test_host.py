"""What a run is said to take of this computer's memory and disk is what it takes; too little is said in a sentence."""

from pathlib import Path

import pytest
from support.bench import settled
from support.photos import photos, pictures

from finetune.cli import plan_view
from finetune.data import record
from finetune.data.images import decode
from finetune.encoding.sizes import CacheBytes
from finetune.encoding.store import usage
from finetune.planning import host
from finetune.planning.footprint import component_footprints
from finetune.planning.host import PICTURE_BYTES, cache_needed, host_needs
from finetune.planning.plan import Plan
from finetune.training.begin import begin


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("changes", [{}, {"prior__mode": "own_prediction"}, {"validation__count": 2}], ids=str)
def test_what_the_cache_takes_is_known_before_anything_is_encoded(
    changes: dict[str, object], tmp_path: Path, cache: Path
) -> None:
    """But for the prompts that a run is judged by, which are few."""
    plan = settled("pocket", photos(tmp_path / "photos"), data__trigger="sks", evaluate__count=0, **changes)
    needed = cache_needed(plan)
    begin(plan)
    held = usage(cache)
    assert held.images == len(plan.train.placed) + len(plan.held_out)
    assert needed.disk == pytest.approx(held.bytes, rel=0.1)


def test_each_crop_and_each_picture_of_a_prior_counts(tmp_path: Path, cache: Path) -> None:
    data = photos(tmp_path / "photos")
    plain = cache_needed(settled("pocket", data, data__trigger="sks", train__steps=500))
    crops = {"data__crop": "random", "data__flip": True}
    all_crops = cache_needed(settled("pocket", data, data__trigger="sks", train__steps=500, **crops))
    assert all_crops.images == pytest.approx(10 * plain.images, rel=0.01)
    beside = pictures(tmp_path / "classes", trigger="", seed=9)
    prior = {"prior": {"mode": "images", "path": str(beside), "prompt": "a cup"}}
    more = cache_needed(settled("pocket", data, data__trigger="sks", **prior))
    assert more.images > 1.9 * plain.images and more.texts > plain.texts


def test_trained_text_encoders_keep_no_captions(tmp_path: Path, cache: Path) -> None:
    data = photos(tmp_path / "photos")
    both = settled("pocket", data, data__trigger="sks", adapter__components=("denoiser", "text_encoder"))
    assert cache_needed(both).texts == 0


def test_more_pictures_take_more_memory_and_the_cache_does_not(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = settled("pocket", photos(tmp_path / "photos"), data__trigger="sks")
    rows = component_footprints(plan)
    held = CacheBytes(10**12, 10**12, 5000)
    monkeypatch.setattr(host, "cache_needed", lambda *_: held)
    found = host_needs(plan, rows, device_bytes=7000)
    assert found.memory == host.PROGRAM_BYTES + 5 * PICTURE_BYTES + 5000 + 7000 and found.cache == held
    monkeypatch.setattr(host, "has_gpu", lambda: True)
    weights = sum(row.weight_bytes for row in rows)
    assert host_needs(plan, rows, 7000).memory == host.PROGRAM_BYTES + 5 * PICTURE_BYTES + 5000 + weights


def answers(plan: Plan) -> dict[str, str]:
    return plan_view.answers(plan, component_footprints(plan), None)


def test_plan_says_what_is_needed_and_what_is_free_and_where_it_does_not_fit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = settled("pocket", photos(tmp_path / "photos"), data__trigger="sks")
    told = answers(plan)
    assert f"in the cache {cache}" in told["disk"] and "free" in told["disk"] and "do not fit" not in told["disk"]
    assert "of this computer's memory" in told["host"] and "does not fit" not in told["host"]
    monkeypatch.setattr(plan_view, "host_memory", lambda: 10**6)
    monkeypatch.setattr(plan_view, "free_disk", lambda _: 1000)
    told = answers(plan)
    assert told["host"].endswith("does not fit: close other programs")
    assert told["disk"].endswith("do not fit: name another folder, data.cache")
    rows = component_footprints(plan)
    found = plan_view.as_json(plan, rows, None)
    assert found["host"] == {"bytes": host_needs(plan, rows, found["needed_bytes"]).memory, "free_bytes": 10**6}  # type: ignore[arg-type]
    assert found["cache"]["disk"] == cache_needed(plan).disk and found["cache"]["free_bytes"] == 1000  # type: ignore[index]


def test_a_run_that_begins_again_on_unchanged_pictures_reads_none_of_them(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "SETTLED_NS", -(10**10))
    read, contents = list[str](), decode.contents

    def counted(path: Path, digest: str = "") -> bytes:
        read.append(path.name)
        return contents(path, digest)

    monkeypatch.setattr(decode, "contents", counted)
    data = photos(tmp_path / "photos")
    first = begin(settled("pocket", data, data__trigger="sks"))
    assert sorted(read) == sorted(3 * [f"{i}.png" for i in range(5)]), (
        "looked at, held against the pocket base, encoded"
    )
    read.clear()
    again = begin(settled("pocket", data, data__trigger="sks"))
    assert not read and again.plan.data.fingerprint == first.plan.data.fingerprint
    (data / "1.png").write_bytes((data / "2.png").read_bytes() + b"\0")
    changed = begin(settled("pocket", data, data__trigger="sks"))
    assert set(read) == {"1.png"} and changed.plan.data.fingerprint != first.plan.data.fingerprint
