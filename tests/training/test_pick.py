"""Candidates scored on the way: the best is exported, a run stops by itself, and both survive an interruption."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.runs import begin, short, train

from finetune import tensors as weights
from finetune.errors import VerifyError
from finetune.evaluation import evaluate
from finetune.events import Picked, Saved, Score, Scored
from finetune.ranks import Ranks
from finetune.references import adapter_path
from finetune.training import pick
from finetune.training.pick import Live

pytestmark = pytest.mark.whole
EVERY = {"evaluate__count": 4, "evaluate__every": 1, "train__steps": 4}


@pytest.fixture
def scores(monkeypatch):
    """step -> (likeness, drift), in place of painting and judging; and the steps that were asked about."""
    table: dict[int, tuple[float, float]] = {1: (0.2, 0.0), 2: (0.9, 0.1), 3: (0.5, 0.1), 4: (0.6, 0.1)}
    asked: list[int] = []

    def told(subject, step, painter):
        asked.append(step)
        likeness, drift = table[step]
        found = {"likeness": Score(likeness, likeness - 0.1, likeness + 0.1), "drift": Score(drift, drift, drift)}
        yield (one := Scored(step, "1/4", found))
        return one

    monkeypatch.setattr(pick, "score", told)
    monkeypatch.setattr("finetune.training.finish.judged", lambda *_: iter(()))  # of a few steps it would be right
    table_and_asked = type("Scores", (), {"table": table, "asked": asked})
    return table_and_asked


def picked(out: Path) -> int | None:
    found: int | None = json.loads((out / "run.json").read_text())["picked_step"]
    return found


def payload(path: Path) -> str:
    return weights.payload_sha256(path)


def test_the_best_candidate_is_exported_to_the_last_bit(data, tmp_path, scores):
    seen = []
    finished = train(short(data, **EVERY, evaluate__pick="best"), tmp_path / "run", seen.append)
    assert scores.asked == [1, 2, 3, 4] and finished.step == picked(tmp_path / "run") == 2
    assert payload(finished.path) == payload(adapter_path(f"{tmp_path / 'run'}@2"))
    assert weights.read_header(finished.path).metadata["finetune.steps"] == "2"
    [told] = [event for event in seen if isinstance(event, Picked)]
    assert told == Picked(2, "likeness 0.90, seen in 1/4: the most of 4 candidates")


def test_without_pick_the_last_one_is(data, tmp_path, scores):
    finished = train(short(data, **EVERY), tmp_path / "run")
    assert finished.step == 4 and picked(tmp_path / "run") is None
    assert payload(finished.path) == payload(adapter_path(f"{tmp_path / 'run'}@4"))


@pytest.mark.parametrize("more", [{"train__ema": 0.5}, {"export__dtype": "float16"}, {"adapter__method": "dora",
                                  "export__layouts": ("diffusers",)}])  # fmt: skip
def test_means_rounded_files_and_other_methods_are_picked_as_they_were(more, data, tmp_path, scores):
    finished = train(short(data, **EVERY, evaluate__pick="best", **more), tmp_path / "run")
    assert payload(finished.path) == payload(adapter_path(f"{tmp_path / 'run'}@2"))


def test_limits_of_the_recipe_hold(data, tmp_path, scores):
    scores.table[2] = (0.9, 0.3)
    assert train(short(data, **EVERY, evaluate__pick="best"), tmp_path / "a").step == 4
    assert train(short(data, **EVERY, evaluate__pick="best", evaluate__max_drift=0.4), tmp_path / "b").step == 2


def test_a_run_stops_by_itself_says_why_and_is_not_taken_up_again(data, tmp_path, scores):
    scores.table.update({3: (0.9, 0.2), 4: (0.9, 0.3)})
    loaded = short(data, **EVERY, evaluate__stop="auto", evaluate__patience=1)
    seen: list[object] = []
    finished = train(loaded, tmp_path / "run", seen.append)
    assert finished.step == 3 and scores.asked == [1, 2, 3]
    assert any("stopped at step 3: likeness has not risen since step 2" in str(event) for event in seen)
    assert (tmp_path / "run/checkpoints/step-000003").is_dir()
    again = train(loaded, tmp_path / "run", resume=True)
    assert again.step == 3 and scores.asked == [1, 2, 3] and payload(again.path) == payload(finished.path)


def test_an_interrupted_run_picks_what_the_whole_one_picks(data, tmp_path, scores):
    loaded = short(data, **EVERY, evaluate__pick="best", train__checkpoint_every=3)
    whole = train(loaded, tmp_path / "whole")
    begin(loaded, tmp_path / "cut", 3)
    scores.asked.clear()
    cut = train(loaded, tmp_path / "cut", resume=True)
    assert scores.asked == [4] and cut.step == whole.step == 2 and payload(cut.path) == payload(whole.path)


def test_another_file_than_the_picked_one_is_no_export(data, tmp_path, scores, monkeypatch):
    monkeypatch.setattr(pick, "_load", lambda run, step: None)
    with pytest.raises(VerifyError, match="the exported file is not the adapter of step 2"):
        train(short(data, **EVERY, evaluate__pick="best"), tmp_path / "run")


def test_all_ranks_stop_when_the_first_one_does(data, tmp_path, scores, monkeypatch):
    runs = []
    monkeypatch.setattr("finetune.training.run.stop_reason", lambda run: runs.append(run) or "")
    train(short(data, **EVERY, evaluate__stop="auto"), tmp_path / "run")
    run, summed = runs[-1], []

    class Two(Ranks):
        def sum(self, tensors):
            summed.extend(float(tensor) for tensor in tensors)
            tensors[0] += 1  # the first rank's word

    run.device = run.device._replace(ranks=Two(1, 2))
    monkeypatch.setattr(type(run.folder), "writes", False)
    assert pick.stop_reason(run) == "the first rank says so" and summed == [0.0]


def test_the_trained_model_paints_what_its_file_paints(data, tmp_path, monkeypatch):
    """Both rows; and while it trains the frozen encoders are asked nothing new."""
    shown, score = {}, evaluate.score

    def kept(subject, step, painter):
        told = yield from score(subject, step, painter)
        shown[step] = subject, evaluate.Gallery(subject.folder, subject.base, subject.path, subject.options, painter)
        return told

    monkeypatch.setattr(pick, "score", kept)
    monkeypatch.setattr("finetune.training.finish.judged", lambda *_: iter(()))
    loaded = short(data, **EVERY | {"train__steps": 2, "evaluate__every": 2, "evaluate__count": 1})
    seen: list[object] = []
    train(loaded, tmp_path / "run", seen.append)
    assert [event.step for event in seen if isinstance(event, Scored)] == [2]
    subject, live = shown[2]
    assert type(live._painter) is Live
    requests = [r for r in requests_of(tmp_path / "run", loaded)]
    from_file = evaluate.Gallery(tmp_path / "other", subject.base, subject.path, subject.options)
    for painted, again in zip(through(live, requests), through(from_file, requests), strict=True):
        for one, other in zip(painted, again, strict=True):
            assert abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 2


def requests_of(out: Path, loaded):
    from finetune.evaluation.subject import of_path

    subject = of_path(out)
    asked = evaluate.asked_of(subject)
    return evaluate._requests(subject, [*asked.with_trigger, *asked.without])


def through(gallery, requests):
    paint = gallery.paint(requests, requests)
    while True:
        try:
            next(paint)
        except StopIteration as e:
            return e.value


def test_saved_comes_before_scored(data, tmp_path, scores):
    """What is looked at is safe already."""
    seen: list[object] = []
    train(short(data, **EVERY, train__checkpoint_every=1), tmp_path / "run", seen.append)
    order = [(type(e).__name__, e.step) for e in seen if isinstance(e, Saved | Scored)]
    assert order == [(kind, step) for step in range(1, 5) for kind in ("Saved", "Scored")]
