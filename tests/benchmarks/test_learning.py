"""`benchmarks/learns.py`: what it asks, what it keeps, and that its bars can be missed."""

import json
from pathlib import Path

import learns
import pytest
from learns import Measures, Trial

from finetune import resources as shipped
from finetune.data import dataset

BASE = Measures(0.3, 0.9, 0.1, 0.8, 0.9, 0.3)
GOOD = Measures(0.9, 0.9, 0.95, 0.07, 0.9, 0.2)
SHUFFLED = GOOD._replace(prompt=0.3)
REFUSED = Measures(refused="nothing was learnt")


def runs(**changed: Measures) -> dict[str, list[Measures]]:
    found = {"base": BASE, "shipped": GOOD, "shuffled": SHUFFLED, "zero": REFUSED} | changed
    return {
        "base": [found["base"]], "shipped": [found["shipped"]] * 3, "shuffled captions": [found["shuffled"]],
        "rate 0": [found["zero"]],
    }  # fmt: skip


@pytest.mark.parametrize("subject", ["product", "product-2", "style", "style-2"])
def test_what_learnt_holds_every_bar(subject):
    found = list(learns.bars(subject, runs()))
    assert len(found) == 6 and all(bar.held for bar in found)


@pytest.mark.parametrize(
    ("subject", "changed", "missed"),
    [
        ("product", {"shipped": GOOD._replace(fidelity=0.79)}, "similarity"),
        ("product", {"shipped": GOOD._replace(prompt=0.79)}, "background"),
        ("style", {"shipped": GOOD._replace(fidelity=0.84)}, "style"),
        ("style", {"shipped": GOOD._replace(prompt=0.79)}, "object"),
        ("style", {"shipped": GOOD._replace(drift=0.09)}, "drift"),
        ("product", {"shipped": GOOD._replace(kept=0.79)}, "objects kept"),
        ("product", {"shuffled": GOOD._replace(prompt=0.7)}, "shuffled"),
        ("product", {"zero": BASE}, "rate 0"),
    ],
)
def test_each_bar_can_be_missed(subject, changed, missed):
    [bar] = [bar for bar in learns.bars(subject, runs(**changed)) if not bar.held]
    assert bar.what.startswith(missed)


def test_the_mean_of_the_seeds_counts():
    found = runs()
    found["shipped"] = [GOOD._replace(fidelity=x) for x in (0.6, 0.9, 0.93)]
    assert next(learns.bars("product", found)).found == pytest.approx(0.81)


def test_what_is_asked_was_not_trained_on():
    found = learns.subjects(Path("none"))
    style, product = found["style"], found["product"]
    for subject in (style, product):
        captions = [e.caption for e in subject.pictures().examples]
        assert not any(f" {a.says}" in caption for a in subject.asked() for caption in captions)
        assert len(captions) == len(set(captions))


def test_shuffled_pictures_are_the_same_and_no_caption_is_its_own(tmp_path):
    source = dataset.read_dataset(shipped.data_path(Path("example:style")))
    learns.shuffle(source, tmp_path / "out")
    made = dataset.read_dataset(tmp_path / "out")
    before, after = ({e.digest: e.caption for e in found.examples} for found in (source, made))
    assert before.keys() == after.keys() and sorted(before.values()) == sorted(after.values())
    assert all(before[digest] != after[digest] for digest in before)
    assert (made.trigger, made.kind) == (source.trigger, source.kind)


def test_a_trial_is_kept_by_all_that_it_depends_on(tmp_path, monkeypatch):
    shipped_one, swept = Trial("style", "shipped", (), 0), Trial("style", "rank: 4", ("adapter.rank=4",), 0)
    names = {learns.record(tmp_path, t) for t in (shipped_one, swept, swept._replace(seed=1), swept._replace(sets=()))}
    assert len(names) == 4
    other = (shipped.RECIPES / "pocket-style.toml").read_text().replace("steps = 400", "steps = 300")
    assert (
        learns.recipe_of("shipped", "lines") == learns.recipe_of("shipped", "style") != learns.recipe_of("base", "lamp")
    )
    (tmp_path / "pocket-style.toml").write_text(other)
    monkeypatch.setattr(shipped, "RECIPES", tmp_path)
    assert learns.record(tmp_path, shipped_one) not in names and learns.record(tmp_path, swept) in names


def test_the_page_leaves_out_what_another_recipe_did_and_fails_with_its_bars(tmp_path, monkeypatch):
    monkeypatch.setattr(learns, "of_base", lambda work: work)

    def keep(label: str, measures: Measures, recipe: str | None = None, looked: int = learns.LOOKED) -> None:
        trial = Trial("product", label, (), 0)
        recipe = learns.recipe_of(label, "product") if recipe is None else recipe
        kept = trial._asdict() | {"looked": looked, "recipe": recipe, "measures": measures._asdict()}
        (tmp_path / "trials" / f"{len(list((tmp_path / 'trials').iterdir()))}.json").write_text(json.dumps(kept))

    (tmp_path / "trials").mkdir()
    for label, some in runs().items():
        keep(label, some[0])
    keep("shipped", GOOD._replace(fidelity=0.0), recipe="of last week")
    keep("shipped", GOOD._replace(fidelity=0.0), looked=learns.LOOKED - 1)
    keep("rank: 4", GOOD._replace(fidelity=0.77), recipe="")
    learns.write(tmp_path, tmp_path)
    told = (tmp_path / "learns.md").read_text()
    assert "| shipped | 1 | 0.90 |" in told and "| rank: 4 | 1 | 0.77 |" in told and "missed" not in told
    keep("shipped", GOOD._replace(fidelity=0.1))
    with pytest.raises(SystemExit, match="missed: product: similarity"):
        learns.write(tmp_path, tmp_path)
    assert "0.50 ± 0.40" in (tmp_path / "learns.md").read_text()


def test_a_sweep_without_the_table_gives_a_page_and_says_what_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(learns, "of_base", lambda work: work)
    kept = Trial("style", "rank: 4", (), 0)._asdict()
    kept |= {"looked": learns.LOOKED, "recipe": "", "measures": GOOD._asdict()}
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "one.json").write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="style: run the table first"):
        learns.write(tmp_path, tmp_path)
    assert "| rank: 4 | 1 | 0.90 |" in (tmp_path / "learns.md").read_text()
