"""Several ranks of one run: they begin together, stop together, and none says what is not so."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from support.photos import photos
from support.ranks import Rank, hit, in_ranks
from support.runs import begin, newest, outcome, saved_bytes, short

from finetune.errors import NotLearnt, PeerLost, RunError
from finetune.events import Event, Sampled, Scored, Stepped, Validated
from finetune.recipe import Loaded
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Picture, Session
from finetune.training import run
from finetune.training.stop import follow


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("four") / "raw", ((64, 64), (64, 60), (60, 64), (64, 64)), flat=True)


def trained(loaded: Loaded, out: Path, resume: bool = False) -> list[tuple[int, float]]:
    """The steps that this rank was told of: none beside the first."""
    seen: list[tuple[int, float]] = []
    follow(
        run.run(loaded, out, resume),
        lambda event: seen.append((event.step, event.loss)) if isinstance(event, Stepped) else None,
    )
    return seen


def ranks(
    world: int, loaded: Loaded, out: Path, arm: Callable[[int], None] = lambda _: None, resume: bool = False
) -> list[Rank]:
    def act(rank: int) -> object:
        arm(rank)
        return trained(loaded, out, resume)

    return in_ranks(world, act, out.with_name(f"{out.name}-ended"))


EVERYONE = -1


@pytest.mark.parametrize(
    ("rank", "numbers"),
    [(1, [signal.SIGTERM]), (0, [signal.SIGTERM]), (EVERYONE, [signal.SIGTERM, signal.SIGTERM]), (1, [signal.SIGHUP])],
    ids=["the second alone", "the first alone", "all, twice", "the second, a closed terminal"],
)
def test_all_stop_after_the_same_step_and_who_saved_says_so(
    four: Path, tmp_path: Path, rank: int, numbers: list[int]
) -> None:
    loaded, out = short(four, train__steps=6, train__batch=1), tmp_path / "out"
    first, second = ranks(2, loaded, out, hit(rank, 2, *numbers))
    assert (first.code, second.code) == (130, 130)
    assert "stopped after step 3; the state is saved" in first.said and second.said == ""
    assert newest(out) == 3 and outcome(out).startswith("interrupted stopped after step 3")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_costs_no_finished_step(four: Path, tmp_path: Path, lost: int) -> None:
    loaded, out = short(four, train__steps=6, train__batch=1, train__checkpoint_every=2), tmp_path / "out"
    ended = ranks(2, loaded, out, hit(lost, 3, signal.SIGKILL))
    assert ended[lost].code == -signal.SIGKILL and ended[1 - lost].code == PeerLost.exit_code
    said = ended[1 - lost].said
    assert said.startswith(f"rank {1 - lost}: another of the 2 processes of this run has ended") and "resume" in said
    if lost:
        assert "; step 3 is saved" in said and newest(out) == 3 and outcome(out).startswith("interrupted rank 0")
    else:  # the checkpoints are the first one's
        assert "saved" not in said and newest(out) == 2


def test_stopped_and_resumed_two_ranks_train_the_same_bits(four: Path, tmp_path: Path) -> None:
    loaded = short(four, train__steps=6, train__batch=1, train__checkpoint_every=6, adapter__dropout=0.1)
    whole, out = tmp_path / "whole", tmp_path / "out"
    unbroken = ranks(2, loaded, whole)
    assert [one.code for one in unbroken] == [0, 0], unbroken
    ranks(2, loaded, out, hit(1, 2, signal.SIGTERM))
    assert newest(out) == 3
    again = ranks(2, loaded, out, resume=True)
    assert [one.code for one in again] == [0, 0], again
    assert saved_bytes(out, 6) == saved_bytes(whole, 6)
    told = [one[0] for one in again[0].value]  # type: ignore[attr-defined]
    assert told == [4, 5, 6] and again[1].value == []


def test_ranks_with_other_data_are_refused_before_the_first_step(four: Path, tmp_path: Path) -> None:
    other = photos(tmp_path / "other", ((64, 64),) * 4, flat=True)
    out = tmp_path / "out"

    def act(rank: int) -> object:
        return trained(short(other if rank else four, train__batch=1), out)

    first, second = in_ranks(2, act, tmp_path / "ended")
    assert (first.code, second.code) == (RunError.exit_code, RunError.exit_code)
    assert "the ranks are not one run: dataset is " in first.said and "on rank 1 (" in first.said
    assert second.said == "" and newest(out) is None


def test_what_one_rank_cannot_use_the_first_one_tells(four: Path, tmp_path: Path) -> None:
    """And the others do not wait for it."""

    def act(rank: int) -> object:
        return trained(short(tmp_path / "absent" if rank else four, train__batch=1), tmp_path / "out")

    first, second = in_ranks(2, act, tmp_path / "ended")
    assert (first.code, second.code) == (2, 2)
    assert first.said.startswith("rank 1 on ") and "absent" in first.said and second.said == ""


def test_ranks_share_the_held_out_images_and_the_prompts(four: Path, tmp_path: Path) -> None:
    """Each is asked of one rank only, and what is told is what one rank alone would have told."""
    loaded = short(four, train__steps=1, train__batch=1, validation__count=2, validation__every=1,
                   sample__every=1, sample__prompts=("a sks cup", "a cup", "a red cup"))  # fmt: skip
    counted = dict[str, int]()

    def act(rank: int) -> object:
        from finetune.evaluation import effect
        from finetune.sampling.session import Session

        errors, generate, seen = effect._errors, Session.generate_many, list[Event]()

        def asked(batch: list[object], *rest: object) -> object:
            counted["images"] = counted.get("images", 0) + len(batch)
            return errors(batch, *rest)  # type: ignore[arg-type]

        def generated(session: Session, requests: list[object], *rest: object) -> object:
            counted["prompts"] = counted.get("prompts", 0) + len(requests)
            return generate(session, requests, *rest)  # type: ignore[arg-type]

        effect._errors, Session.generate_many = asked, generated  # type: ignore[assignment,method-assign]
        for event in run.run(loaded, tmp_path / f"of {os.environ.get('WORLD_SIZE')}"):
            seen.append(event)
            if isinstance(event, Sampled) and event.step == 1:
                break
        return counted, [event for event in seen if isinstance(event, Validated)]

    alone = in_ranks(1, act, tmp_path / "alone")[0].value
    counts, told = zip(*[one.value for one in in_ranks(2, act, tmp_path / "both")], strict=True)  # type: ignore[misc]
    assert counts[0]["images"] + counts[1]["images"] == alone[0]["images"]  # type: ignore[index]
    assert counts[0]["prompts"] + counts[1]["prompts"] == alone[0]["prompts"]  # type: ignore[index]
    assert min(counts[1].values()) > 0 and not told[1]
    assert alone[1][0].loss == pytest.approx(told[0][0].loss, rel=1e-6)  # type: ignore[index]


def test_the_batch_of_a_run_may_be_made_otherwise_and_not_be_another(four: Path, tmp_path: Path) -> None:
    """2 ranks x 3 go on as 1 x 6, and not as 1 x 3."""
    out = tmp_path / "out"
    loaded = short(four, train__steps=4, train__batch=1, train__accumulate=3)
    ranks(2, loaded, out, hit(1, 1, signal.SIGTERM))
    assert newest(out) == 2
    with pytest.raises(RunError, match="batch 1 x 3 = 3 pictures a step: it was begun with 6") as refused:
        begin(loaded, out, 4, resume=True)
    assert "train.accumulate = 6" in refused.value.advice
    seen = begin(short(four, train__steps=4, train__batch=1, train__accumulate=6), out, 4, resume=True)
    assert [event.step for event in seen if isinstance(event, Stepped)] == [3, 4]


@pytest.mark.parametrize("shard", ["off", "on"])
def test_all_ranks_paint_what_a_candidate_is_scored_by(four: Path, tmp_path: Path, shard: str) -> None:
    changes = {
        "train__steps": 2,
        "evaluate__count": 4,
        "evaluate__every": 1,
        "evaluate__pick": "best",
        "train__shard": shard,
    }

    def act(rank: int) -> object:
        painted, paint = list[int](), Session.generate_together
        out = tmp_path / f"{world}"

        def counted(session: Session, requests: Sequence[SampleRequest]) -> list[Picture]:
            if type(session) is not Session:  # the model that is trained; the end is the first rank's
                painted.append(len(requests))
            return paint(session, requests)

        Session.generate_together = counted  # type: ignore[method-assign]
        loaded, found = short(four, train__batch=1, train__accumulate=2 // world, **changes), list[Scored]()
        with suppress(NotLearnt):  # of two steps
            follow(run.run(loaded, out), lambda e: found.append(e) if isinstance(e, Scored) else None)
        return sum(painted), [(one.step, one.seen, {n: s.value for n, s in one.scores.items()}) for one in found]

    told = []
    for world in (1, 2):
        ended = in_ranks(world, act, tmp_path / f"ended{world}")
        assert [one.code for one in ended] == [0] * world, ended
        told.append([one.value for one in ended])
    ((alone, scores),), ((first, shared), (second, none)) = told  # type: ignore[misc]
    assert first + second == alone and second > alone // 3 and none == []
    assert [one[:2] for one in shared] == [one[:2] for one in scores] and len(scores) == 2
    for one, other in zip(shared, scores, strict=True):
        assert one[2] == pytest.approx(other[2], abs=1e-3)
