"""Captions that vary while a run trains: encoded before they are shown, bounded, counted, resumed alike."""

from collections import Counter
from pathlib import Path

import pytest
from support.bench import bench, settled
from support.photos import photos
from support.runs import begin, saved_bytes, short, steps, train

from finetune.cli import plan_view
from finetune.data.text.caption_edits import tags_of
from finetune.errors import RunError
from finetune.events import Event
from finetune.planning.footprint import component_footprints
from finetune.planning.host import cache_needed, encoded_captions
from finetune.training import look
from finetune.training.resume import refuse_changes

EDITS = {"data__shuffle_tags": True, "data__keep_tags": 1, "data__tag_dropout": 0.2, "data__caption_variants": 6}
SHAPES = ((64, 64),) * 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = photos(tmp_path_factory.mktemp("photos") / "raw", SHAPES)
    for n in range(4):
        (root / f"{n}.txt").write_text(
            f"photo, sks cup {n}, red, {{round|square}}, table, light\nsks cup {n}, seen, from, above"
        )
    return root


def shown(plan: look.Plan) -> list[look.Look]:
    views = [view for m in range(plan.micros) for view in plan.train.schedule.micro_batch(m).views]
    return [look.look(plan, plan.train.placed[view.sample], view.visit) for view in views]


@pytest.mark.parametrize("prior", [{}, {"prior__mode": "own_prediction"}])
def test_what_is_encoded_is_what_is_shown_and_no_more_than_the_variants(data: Path, prior: dict[str, str]) -> None:
    plan = settled("pocket", data, train__epochs=50, train__steps=None, data__trigger="sks", data__caption_dropout=0.1,
                   **EDITS, **prior)  # fmt: skip
    texts = Counter(one.prompt.caption for one in shown(plan))
    listed = {prompt.caption for prompt in look.prompts(plan)}
    assert texts.keys() <= listed
    own = {p.example.caption for p in plan.train.placed}
    kept = {one.preserved.caption for one in shown(plan) if one.preserved}
    assert listed == texts.keys() | kept | own | {"", *plan.recipe.sample.prompts}
    assert len(texts) <= 1 + 4 * 6, "six variants a picture, in two hundred visits"
    assert all("sks cup" in caption for caption in texts if caption)
    assert encoded_captions(plan) == listed


def test_captions_are_dropped_to_what_inference_has_without_a_prompt_and_to_nothing_else(data: Path) -> None:
    """T12, with tags left out beside."""
    edits = EDITS | {"data__tag_dropout": 0.9, "data__keep_tags": 0}
    plan = settled("pocket", data, train__epochs=200, train__steps=None, data__caption_dropout=0.3, **edits)
    captions = [one.prompt.caption for one in shown(plan)]
    assert 0.2 < captions.count("") / len(captions) < 0.4
    assert all(one.chance.drop_caption == (one.prompt.caption == "") for one in shown(plan))
    undropped = settled("pocket", data, train__epochs=200, train__steps=None, data__caption_dropout=0, **edits)
    assert "" not in [one.prompt.caption for one in shown(undropped)]


def test_ranks_show_together_what_one_shows_alone(data: Path) -> None:
    alone = settled("pocket", data, train__steps=12, train__accumulate=2, **EDITS)
    spread = settled("pocket", data, 2, train__steps=12, **EDITS)

    def captions(plan: look.Plan, rank: int) -> list[str]:
        micros = [micro for k in range(12) for micro in plan.train.schedule.step(k, rank, plan.micros)]
        return [look.look(plan, plan.train.placed[v.sample], v.visit).prompt.caption for m in micros for v in m.views]

    assert captions(alone, 0)[::2] == captions(spread, 0) and captions(alone, 0)[1::2] == captions(spread, 1)


def test_plan_counts_the_texts_and_their_disk(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    plain, edited = (settled("pocket", data, train__steps=100, evaluate__count=0, **e) for e in ({}, EDITS))
    rows = component_footprints(edited)
    told = plan_view.answers(edited, rows, None)["captions"]
    number = len(encoded_captions(edited))
    assert number > len(encoded_captions(plain)) and cache_needed(edited).texts > cache_needed(plain).texts
    assert told.startswith(
        "4 of 4 images have several, shown in turn; tags shuffled and 20% of tags left out, in at most 6"
    )
    assert f"{number:,} different texts are encoded" in told
    found = plan_view.as_json(edited, rows, None)["captions"]
    assert found == {"texts": number, "bytes": cache_needed(edited).texts, "several": 4}
    both = settled("pocket", data, adapter__components=("denoiser", "text_encoder"), **EDITS)
    assert "read them anew" in plan_view.answers(both, component_footprints(both), None)["captions"]


def test_trained_text_encoders_read_the_same_captions_as_cached_ones(data: Path) -> None:
    benches = [bench("pocket", data, train__steps=6, adapter__components=c, **EDITS)
               for c in (("denoiser",), ("denoiser", "text_encoder"))]  # fmt: skip
    cached, trained = ([batch.captions for k in range(6) for batch in b.step(k)] for b in benches)
    assert cached == trained and len({caption for batch in cached for caption in batch}) > 4
    assert all(batch.text for batch in benches[0].step()) and not any(batch.text for batch in benches[1].step())


@pytest.mark.whole
def test_a_run_with_all_of_it_on_is_resumed_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """Killed after its second step, it shows the rest, and ends in the same weights, as one that never stopped."""
    loaded = short(data, train__steps=6, train__checkpoint_every=2, data__caption_dropout=0.1, **EDITS)
    whole: list[Event] = []
    train(loaded, tmp_path / "whole", whole.append)
    begin(loaded, tmp_path / "cut", 2)
    rest: list[Event] = []
    train(loaded, tmp_path / "cut", rest.append, resume=True)
    assert saved_bytes(tmp_path / "whole", 6) == saved_bytes(tmp_path / "cut", 6)
    assert steps(whole)[2:] == steps(rest)


def test_a_run_of_a_version_without_these_keys_is_resumed_and_a_change_of_them_is_refused(tmp_path: Path) -> None:
    before = {"train.seed": "0", "data.flip": "False"}
    now = before | {"data.shuffle_tags": "False", "data.keep_tags": "0"}
    refuse_changes(tmp_path, before, now)
    with pytest.raises(RunError, match=r"data.shuffle_tags: was False, now True"):
        refuse_changes(tmp_path, before, now | {"data.shuffle_tags": "True"})


def test_what_is_shown_keeps_the_tags(data: Path) -> None:
    plan = settled(
        "pocket", data, train__epochs=30, train__steps=None, data__trigger="sks", data__caption_dropout=0, **EDITS
    )
    for one in shown(plan):
        tags = tags_of(one.prompt.caption)
        own = [tags_of(caption) for caption in one.placed.example.captions]
        assert any(not Counter(tags) - Counter(some) and tags[0] == some[0] for some in own)
