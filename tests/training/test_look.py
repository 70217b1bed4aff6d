"""What is shown is listed by the function that builds the batches: nothing lacks, and nothing is too much."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bases import tiny_base
from support.bench import bench, settled
from support.photos import SQUARE, WIDE, pictures
from support.runs import short, train

from finetune.data.example import Example
from finetune.diffusion.chance import choice
from finetune.encoding.images import PLACES, STRAIGHT, Crop
from finetune.families.base import Prompt
from finetune.planning.plan import Plan
from finetune.training import batches, look
from finetune.training.look import Look


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "sd15", "sd15")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "six", [SQUARE] * 4 + [WIDE] * 3)


CHOICES = {"data__crop": "random", "data__flip": True, "data__caption_dropout": 0.3}


def taken(plan: Plan) -> list[Look]:
    """By every micro-batch of the run, one after the other."""
    pools = [plan.train, *([plan.prior] if plan.prior else [])]
    micros = [(pool, pool.schedule.micro_batch(m)) for pool in pools for m in range(plan.micros)]
    return [look.look(plan, pool.placed[v.sample], v.visit) for pool, micro in micros for v in micro.views]


@pytest.mark.parametrize(
    "prior", [{}, {"prior__mode": "own_prediction", "data__trigger": "sks"}, {"prior__mode": "images"}]
)
def test_all_that_a_run_shows_is_listed_and_nothing_else_but_what_judges_it(
    base: Path, data: Path, tmp_path: Path, prior: dict[str, object]
) -> None:
    if prior.get("prior__mode") == "images":
        classes = pictures(tmp_path / "classes", [SQUARE] * 2, trigger="", seed=1)
        prior = prior | {"prior__path": classes, "prior__prompt": "a thing"}
    plan = settled(
        base, data, train__epochs=3, train__steps=None, train__batch=2, validation__count=1, **CHOICES, **prior
    )
    shown, judged = taken(plan), [p.example.name for p in (*plan.train.placed, *plan.held_out)]
    listed = {(w.example.name, w.crop) for w in look.wanted(plan)}
    keys = {(one.placed.example.name, one.crop) for one in shown}
    if plan.prior is None:  # its last epoch is longer than the run
        assert listed == keys | {(name, STRAIGHT) for name in judged}
    assert keys | {(name, STRAIGHT) for name in judged} <= listed
    texts = {one.prompt.caption for one in shown} | {one.preserved.caption for one in shown if one.preserved}
    own = {p.example.caption for p in (*plan.train.placed, *plan.held_out)}
    assert {p.caption for p in look.prompts(plan)} == texts | own | {"", *plan.recipe.sample.prompts}
    assert len(listed) == len(look.wanted(plan)), "each once"


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"data__crop": "random"},
        {"data__flip": True},
        {"data__caption_dropout": 0.9},
        "wordings",
        "controls",
        "tags",
    ],
)
def test_each_choice_by_itself_is_listed_where_it_is_taken(
    choice: dict[str, object] | str, base: Path, data: Path
) -> None:
    options = choice if isinstance(choice, dict) else {"data__caption_dropout": 0.5}
    options = {"data__shuffle_tags": True, "data__caption_variants": 64} if choice == "tags" else options
    plan = settled(base, data, train__epochs=20, train__steps=None, **options)
    if choice == "wordings":
        plan = changed(plan, lambda e: e._replace(wordings=(e.caption, f"{e.caption}, seen", "another")))
    if choice == "controls":
        plan = changed(plan, lambda e: e._replace(controls=(e._replace(name=f"control/{e.name}"),)))
    if choice == "tags":  # so many that no two looks are alike, the last of them included
        plan = changed(plan, lambda e: e._replace(wordings=(f"{e.caption}, a, b, c, d, e, f, g, h, i, j",)))
    shown = taken(plan)
    keys = {(one.placed.example.name, one.crop) for one in shown}
    assert keys <= {(w.example.name, w.crop) for w in look.wanted(plan)}
    assert {one.prompt.key for one in shown} <= {prompt.key for prompt in look.prompts(plan)}
    assert look.varied(plan, shown[0].placed.example) == (
        choice not in ({}, {"data__caption_dropout": 0.9}, "controls")
    )


def changed(plan: Plan, change: Callable[[Example], Example]) -> Plan:
    """With other examples to train on."""
    placed = tuple(p._replace(example=change(p.example)) for p in plan.train.placed)
    return dataclasses.replace(plan, train=plan.train._replace(placed=placed))


def test_nothing_is_drawn_to_list_what_chance_does_not_decide(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand pictures are listed at each start."""
    plan = settled(base, data, train__epochs=50, train__steps=None)
    monkeypatch.setattr(look, "draw", lambda *_: pytest.fail("something is drawn"))
    assert len(look.wanted(plan)) == len(plan.train.placed)
    assert len(look.prompts(plan)) > len(plan.train.placed)


def test_only_the_crops_that_are_drawn_are_encoded(base: Path, data: Path) -> None:
    """One epoch of ten crops each: not ten times the dataset; and of many epochs, every one."""
    once, often = (settled(base, data, train__epochs=n, train__steps=None, **CHOICES) for n in (1, 200))
    assert len(look.wanted(once)) <= 2 * len(once.train.placed)
    crops = {Crop(place, flip) for place in range(len(PLACES)) for flip in (False, True)}
    for placed in often.train.placed:
        assert {w.crop for w in look.wanted(often) if w.example == placed.example} == crops


def test_the_pre_flight_of_a_run_shorter_than_an_epoch_finds_its_largest_batch(base: Path, data: Path) -> None:
    b = bench(base, data, train__steps=1, train__batch=2, **CHOICES)
    assert b.batches.largest().samples == 2


def test_a_choice_that_no_list_can_hold_is_made_in_one_place(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words shuffled at each visit: encoded before, shown after, by one function changed."""
    plain, seen = look.look, set[str]()

    def shuffled(plan: Plan, placed: look.Placed, visit: int) -> Look:
        one = plain(plan, placed, visit)
        words = one.prompt.caption.split()
        choice(plan.recipe.train.seed, placed.example.name, visit, "words").shuffle(words)
        return one._replace(prompt=Prompt(" ".join(words)))

    class Watched(batches.Batches):
        def train(self, micro: object) -> batches.Batch:
            batch = super().train(micro)  # type: ignore[arg-type]
            seen.update(batch.captions)
            return batch

    monkeypatch.setattr(look, "look", shuffled)
    monkeypatch.setattr(look, "varied", lambda *_: True)
    monkeypatch.setattr(batches, "look", shuffled)
    monkeypatch.setattr(batches, "Batches", Watched)
    train(short(data, train__steps=20), tmp_path / "out")
    assert len(seen) > len({" ".join(sorted(caption.split())) for caption in seen}) > 1
