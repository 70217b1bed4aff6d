"""Weights spread over the ranks (FSDP2) train what replicas train, and what one process trains."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support.bench import BOTH, bench
from support.photos import SQUARE, photos, pictures
from support.ranks import Rank, hit, in_ranks
from support.runs import newest, saved_bytes, short
from torch import Tensor
from torch.testing import assert_close

from finetune import recipe
from finetune.cli.plan_view import answers, needed_bytes
from finetune.errors import PeerLost, RecipeError
from finetune.planning.counts import kept_footprints
from finetune.planning.plan import resolve_plan
from finetune.planning.spread import held_bytes, is_spread
from finetune.ranks import whole
from finetune.recipe import Loaded
from finetune.training import run
from finetune.training.stop import follow

WORLDS = (2, 3)


class Trained(NamedTuple):
    losses: list[float]
    norms: list[float]
    rates: list[dict[str, float]]
    weights: dict[str, Tensor]
    held: int
    """numbers that this rank holds of what is trained"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "seven", [SQUARE] * 4 + [(180, 128)] * 3)


def trained(base: Path, data: Path, world: int, batches: int = 6, **changes: object) -> Trained:
    """By whichever processes are there; batches: of a step, on all ranks together."""
    usual = {"train__steps": 3, "train__accumulate": batches // world, "optimizer__schedule": "cosine",
             "optimizer__learning_rate": 3e-4, "adapter__dropout": 0.2}  # fmt: skip
    b = bench(base, data, world, **(usual | changes))
    steps = b.train()
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in b.named().values())
    weights = {n: whole(p.detach()).clone() for n, p in b.named().items()}
    return Trained([s.loss for s in steps], [s.grad_norm for s in steps], [s.rates for s in steps], weights, held)


def in_processes(world: int, base: Path, data: Path, folder: Path, **changes: object) -> list[Trained]:
    ended = in_ranks(world, lambda rank: trained(base, data, world, **changes), folder)
    assert [one.code for one in ended] == [0] * world, ended
    return [one.value for one in ended]  # type: ignore[misc]


@pytest.fixture(scope="module")
def alone(sd15: Path, data: Path) -> Trained:
    """By one process, both components."""
    return trained(sd15, data, 1, adapter__components=BOTH)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shard", ["off", "on"])
def test_ranks_train_what_one_process_trains(
    sd15: Path, data: Path, alone: Trained, tmp_path: Path, world: int, shard: str
) -> None:
    found = in_processes(world, sd15, data, tmp_path, adapter__components=BOTH, train__shard=shard)
    total = sum(t.numel() for t in alone.weights.values())
    assert [one.held < total for one in found] == [shard == "on"] * world
    for one in found:
        assert one.rates == alone.rates
        assert_close(one.losses, alone.losses, rtol=1e-5, atol=0)
        assert_close(one.norms, alone.norms, rtol=1e-4, atol=0)
        assert_close(one.weights, alone.weights, rtol=0, atol=1e-6)
    assert all(torch.equal(found[0].weights[n], found[-1].weights[n]) for n in alone.weights)


KINDS: dict[str, dict[str, object]] = {
    "a last step with one batch": {"train__steps": None, "train__epochs": 1, "batches": 2},
    "full": {"adapter": {"method": "full"}, "optimizer__learning_rate": 3e-5},
    "full, both, recomputed": {"adapter": {"method": "full", "components": BOTH}, "optimizer__learning_rate": 3e-5,
                               "train__gradient_checkpointing": True},
    "mean": {"train__ema": 0.9},
    "DoRA": {"adapter__method": "dora"},
    "prior": {"prior__mode": "self", "data__trigger": "sks"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_spread_weights_are_trained_as_whole_ones(sd15: Path, data: Path, tmp_path: Path, kind: str) -> None:
    alone = trained(sd15, data, 1, **KINDS[kind])
    found = in_processes(2, sd15, data, tmp_path, train__shard="on", **KINDS[kind])
    for one in found:
        assert_close(one.losses, alone.losses, rtol=1e-5, atol=0)
        assert_close(one.weights, alone.weights, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("four") / "raw", ((64, 64), (64, 60), (60, 64), (64, 64)))


def ran(
    loaded: Loaded, out: Path, world: int, arm: Callable[[int], None] = lambda _: None, resume: bool = False
) -> list[Rank]:
    """Each rank's events, of those beside the first none."""

    def act(rank: int) -> list[str]:
        arm(rank)
        seen: list[str] = []
        follow(run.run(loaded, out, resume), lambda event: seen.append(type(event).__name__))
        return seen

    return in_ranks(world, act, out.with_name(f"{out.name}-ended"))


FULL = {"adapter": {"method": "full"}, "optimizer__learning_rate": 1e-4}


@pytest.mark.parametrize("adapter", [{}, FULL], ids=["LoRA", "full"])
def test_a_whole_run_ends_with_the_file_of_one_process(four: Path, tmp_path: Path, adapter: dict[str, object]) -> None:
    """Samples, candidates and held-out losses on the way, a mean, and the proof at the end."""
    changes = {"sample__every": 2, "validation__count": 1, "validation__every": 2, "train__ema": 0.5,
               "optimizer__learning_rate": 3e-4, **adapter}  # fmt: skip
    told, files = [], []
    for world in (1, 2):
        out = tmp_path / f"{world}"
        ended = ran(short(four, train__batch=1, train__accumulate=2 // world, train__shard="on", **changes), out, world)
        assert [one.code for one in ended] == [0] * world, ended
        told.append([name for name in ended[0].value if name not in ("Warned", "Advanced")])  # type: ignore[attr-defined]
        files.append(load_file(next((out / "adapter").glob("*/unet/*.safetensors" if adapter else "*.safetensors"))))
    assert told[0] == told[1]
    assert_close(files[1], files[0], rtol=0, atol=1e-6)


def test_stopped_and_resumed_it_trains_the_same_bits(four: Path, tmp_path: Path) -> None:
    """And on another number of ranks the same run, to rounding."""
    loaded = short(four, train__steps=6, train__batch=1, train__accumulate=1, train__checkpoint_every=6,
                   train__shard="on", adapter__dropout=0.1, train__ema=0.5)  # fmt: skip
    whole_run, out, alone = (tmp_path / name for name in ("whole", "out", "alone"))
    assert [one.code for one in ran(loaded, whole_run, 2)] == [0, 0]
    stopped = ran(loaded, out, 2, hit(1, 2, signal.SIGTERM))
    assert [one.code for one in stopped] == [130, 130] and "stopped after step 3; the state is saved" in stopped[0].said
    shutil.copytree(out, alone)
    again = ran(loaded, out, 2, resume=True)
    assert [one.code for one in again] == [0, 0], again
    assert saved_bytes(out, 6) == saved_bytes(whole_run, 6)
    (one,) = ran(loaded._replace(recipe=recipe.replace(loaded.recipe, train__accumulate=2)), alone, 1, resume=True)
    assert one.code == 0, one
    expected, found = (load_file(next(f.glob("adapter/*.safetensors"))) for f in (whole_run, alone))
    assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_costs_what_came_after_the_last_checkpoint(four: Path, tmp_path: Path, lost: int) -> None:
    out = tmp_path / "out"
    loaded = short(four, train__steps=6, train__batch=1, train__checkpoint_every=2, train__shard="on")
    ended = ran(loaded, out, 2, hit(lost, 3, signal.SIGKILL))
    left = ended[1 - lost]
    assert ended[lost].code == -signal.SIGKILL and left.code == PeerLost.exit_code, ended
    assert "another of the 2 processes of this run has ended" in left.said
    assert newest(out) == 2 and ("step 2 is saved" in left.said) == (lost == 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"train__base_bits": 4}, "packed weights"), ({"optimizer__name": "adafactor"}, "adafactor"),
     ({"train__compile": True}, "compile"), ({"optimizer__name": "adamw8bit"}, "adamw8bit")],
    ids=["4 bits", "adafactor", "compiled", "8 bits"],
)  # fmt: skip
def test_what_cannot_be_spread_is_refused_by_name(four: Path, changes: dict[str, object], said: str) -> None:
    plan = resolve_plan(short(four, train__shard="on", **changes), 2)
    with pytest.raises(RecipeError, match=f"train.shard = on cannot be had with .*{said}") as e:
        is_spread(plan, 2)
    assert e.value.hint
    for shard, world in (("on", 1), ("off", 2), ("auto", 2)):
        assert not is_spread(resolve_plan(short(four, train__shard=shard, **changes), world), world)


def test_plan_tells_what_each_gpu_holds(four: Path) -> None:
    alone, two = (resolve_plan(short(four, train__shard="on", **FULL), world) for world in (1, 2))
    rows = kept_footprints(alone)
    whole_bytes, half = held_bytes(alone, rows), held_bytes(two, rows)
    assert whole_bytes == sum(row.bytes for row in rows) and half == -(-whole_bytes // 2)
    assert (
        f"spread over {2} GPUs" in answers(two, rows, None)["memory"]
        and "spread" not in answers(alone, rows, None)["memory"]
    )
    assert needed_bytes(two, rows, None, 0) == half > sum(row.weight_bytes for row in rows)
    assert needed_bytes(two, rows, None, 0) < needed_bytes(alone, rows, None, 0)
