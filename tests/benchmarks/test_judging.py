"""The benchmark of the verdict: what the referee's word is, and which runs it counts."""

from collections import Counter
from pathlib import Path

import learns
import pytest
import verdict
from learns import Measures, Trial

from finetune.data.dataset import read_dataset
from finetune.events import Evaluated, Score

BASE = Measures(prompt=0.9, kept=0.9)
GOOD = Measures(fidelity=0.95, prompt=0.9, kept=0.9)


@pytest.mark.parametrize(
    "changed, learnt",
    [({}, True), ({"fidelity": 0.79}, False), ({"prompt": 0.55}, False), ({"prompt": 0.65}, True),
     ({"kept": 0.5}, False), ({"refused": "diverged"}, False)],
)  # fmt: skip
def test_the_referee_says_learnt_when_it_is_seen_prompts_are_followed_and_other_things_kept(changed, learnt):
    assert verdict.learnt(GOOD._replace(**changed), BASE) is learnt


def row(referee: bool, said: bool | None) -> verdict.Row:
    told = None if said is None else Evaluated(Path("a"), said, "9/10", {"likeness": Score(0.9, 0.8, 1.0)}, (), "")
    return verdict.Row(Trial("product", "shipped", (), 0), GOOD, referee, told)


def test_a_verdict_is_right_when_it_says_what_the_referee_says_and_a_refused_run_says_not_learnt():
    found = [row(True, True), row(False, False), row(False, None), row(True, False), row(False, True), row(True, None)]
    assert [one.right for one in found] == [True, True, True, False, False, False]
    assert verdict.line(found[0]).startswith("right") and verdict.line(found[3]).startswith("WRONG")
    assert "refused" in verdict.line(found[2])


def test_half_of_the_60_runs_are_spoilt_each_in_six_ways(tmp_path):
    found = verdict.trials(tmp_path)
    labels = Counter(trial.label for trial in found)
    assert len(found) == len(set(found)) == 60 and labels.pop("shipped") == 30
    assert len(labels) == 6 and set(labels.values()) == {5}
    settings = {trial.label: trial.sets for trial in found if trial.subject == "product"}
    assert settings["rate a hundredth"] == ("optimizer.learning_rate=1e-05",)
    assert settings["a tenth of the steps"] == ("train.steps=30",)


def test_the_shipped_runs_are_those_of_the_other_benchmark(tmp_path):
    ours = {learns.record(tmp_path, trial) for trial in verdict.trials(tmp_path) if trial.label == "shipped"}
    theirs = {learns.record(tmp_path, Trial("kettle", "shipped", (), seed)) for seed in learns.SEEDS}
    assert theirs < ours


def test_a_spoilt_dataset_has_the_same_pictures_and_other_captions(tmp_path):
    verdict.spoil(tmp_path, "product")
    real = learns.subjects(tmp_path)["product"].pictures()
    made = {what: read_dataset(tmp_path / what / "product") for what in ("equal", "shuffled", "trigger")}
    assert all(len(data.examples) == len(real.examples) for data in made.values())
    said = {what: sorted(e.caption for e in data.examples) for what, data in made.items()}
    assert set(said["equal"]) == {"a photo of sks cup"}
    assert said["shuffled"] == sorted(e.caption for e in real.examples)
    assert made["shuffled"].fingerprint != real.fingerprint
    verdict.spoil(tmp_path, "style")  # `prepare` refuses sixteen equal captions of a style
    raw = read_dataset(tmp_path / "equal" / "style", trigger="sks")
    assert not raw.prepared and [e.caption for e in raw.examples] == ["an image in sks style"] * 16
    assert all("a zwx cup on " in caption for caption in said["trigger"]) and made["trigger"].trigger == "zwx"
