"""What a run does beside its steps is done once and in batches: counted in calls, as seconds belong in benchmarks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.photos import photos
from support.runs import short, train

from finetune import families
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Picture, Session

PROMPTS = ("a sks cup", "a sks cup on a table", "a star")


def test_a_runs_pictures_are_made_in_batches_and_its_base_is_opened_for_its_purposes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, opened = list[tuple[str, ...]](), list[str]()
    together: Callable[..., list[Picture]] = Session.generate_together
    load = families.load

    def generate(session: Session, requests: Sequence[SampleRequest]) -> list[Picture]:
        batches.append(tuple(request.prompt for request in requests))
        return together(session, requests)

    def noted(base: str, *rest: Any, **more: Any) -> Any:
        opened.append(base)
        return load(base, *rest, **more)

    monkeypatch.setattr(Session, "generate_together", generate)
    monkeypatch.setattr(families, "load", noted)
    wanted = short(photos(tmp_path / "data"), sample__prompts=PROMPTS, sample__every=4, evaluate__count=0)
    train(wanted, tmp_path / "out")
    assert batches == [PROMPTS] * 4  # at step 0, at the last step, and the two rows of the sheet
    assert opened == ["pocket"] * 3  # to train, to prove the file in a fresh one, and for the sheet


def test_our_own_families_are_found_without_a_look_at_all_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "entry_points", lambda group: pytest.fail(f"looked for {group}"))
    assert [families.family_class(name).name for name in families.FAMILIES] == list(families.FAMILIES)
