"""The loop itself: steps, gradients, ways to compute, ranks, and the running mean."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT, TESTS
from support.bench import BOTH, Bench, bench
from support.photos import SQUARE, WIDE, pictures
from torch import Tensor
from torch.testing import assert_close

from finetune.errors import TrainError
from finetune.evaluation import effect as evaluate
from finetune.families.base import components
from finetune.ranks import Ranks
from finetune.training import loop as trainer
from finetune.training.batches import Batches, StepBatches


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "six")


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_steps_are_numbered_and_only_trained_weights_change(sd15: Path, data: Path) -> None:
    b = bench(sd15, data, adapter__components=BOTH)
    before = {c: {n: t.clone() for n, t in m.state_dict().items()} for c, m in components(b.family).items()}
    assert [s.number for s in b.train()] == [1, 2, 3] and b.state.step == 3
    for component, module in components(b.family).items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[component][name]) != ("lora_" in name), (component, name)


def test_training_is_a_function_of_the_recipe_and_not_of_torchs_random_state(sd15: Path, data: Path) -> None:
    """Adapter dropout, the only module that draws, included."""
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        b = bench(sd15, data, adapter__dropout=0.5, data__caption_dropout=0.3)
        found.append(([s.loss for s in b.train()], b.weights()))
    assert found[0][0] == found[1][0]
    assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_the_seed_changes_the_training(sd15: Path, data: Path) -> None:
    losses = [[s.loss for s in bench(sd15, data, train__seed=seed).train()] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_the_loss_falls_on_one_picture(sd15: Path, tmp_path: Path) -> None:
    """The base is random, so predicting the noise of one picture has much to learn."""
    b = bench(sd15, pictures(tmp_path / "one", [SQUARE]), train__batch=2, train__steps=6,
              adapter__targets="all", optimizer__learning_rate=1e-2)  # fmt: skip
    args = (b.plan.train.placed, b.latents, b.captions, b.machine.autocast)
    before = evaluate.losses(*args).mean
    b.train()
    assert evaluate.losses(*args).mean < 0.9 * before


class Poisoned(Batches):
    """Latents that are not finite at some steps."""

    bad: frozenset[int] = frozenset()

    def _share(self, step: int, ranks: Ranks, even: bool) -> StepBatches:
        share = super()._share(step, ranks, even)
        if step not in self.bad:
            return share
        return share._replace(pairs=[(b._replace(latents=b.latents * float("nan")), p) for b, p in share.pairs])


def poisoned(b: Bench, *bad: int) -> Bench:
    made = Poisoned(b.plan, b.family, b.latents, b.captions)
    made.bad = frozenset(bad)
    return b._replace(batches=made)


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_told(sd15: Path, data: Path) -> None:
    b = poisoned(bench(sd15, data, train__steps=3), 1)
    weights, skipped = [b.weights()], []
    for step in b.steps():
        weights.append(b.weights())
        skipped.append(step.skipped)
    assert skipped == [False, True, False]
    assert_close(weights[1], weights[2], rtol=0, atol=0)
    assert any(not torch.equal(weights[2][n], weights[3][n]) for n in weights[2])
    assert all(t.isfinite().all() for t in weights[3].values())
    assert b.state.bad_steps == 0


def test_several_bad_steps_in_a_row_stop_the_run_with_exit_4(sd15: Path, data: Path) -> None:
    b = poisoned(bench(sd15, data, train__steps=9, train__patience=2), 1, 3, 4, 5)
    with pytest.raises(TrainError, match="not finite for 2 steps in a row, until step 5") as e:
        b.train()
    assert e.value.exit_code == 4 and b.state.step == 5


# -- ways to compute --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [("denoiser",), BOTH])
def test_gradient_checkpointing_changes_no_gradient(sd15: Path, data: Path, components: tuple[str, ...]) -> None:
    found = []
    for on in (False, True):
        b = bench(sd15, data, train__gradient_checkpointing=on, train__batch=2, adapter__components=components)
        b.grow()
        found.append(b.gradients())
        assert any(getattr(m, "gradient_checkpointing", False) for m in b.family.parts["unet"].modules()) == on
    assert found[0].keys() == b.named().keys() == found[1].keys()
    assert all(g.any() for g in found[1].values())
    assert_close(found[0], found[1], rtol=1e-5, atol=1e-9)


def test_bf16_trains_on_the_cpu_with_the_base_in_bf16_and_the_adapter_in_fp32(sd15: Path, data: Path) -> None:
    b = bench(sd15, data, train__precision="bf16", adapter__components=BOTH)
    steps = b.train()
    assert all(np.isfinite(s.loss) and not s.skipped for s in steps)
    assert {p.dtype for p in b.state.parameters} == {torch.float32}
    for component in components(b.family).values():
        assert {p.dtype for p in component.parameters() if not p.requires_grad} == {torch.bfloat16}
    exact = bench(sd15, data, adapter__components=BOTH).train()
    assert_close([s.loss for s in steps], [s.loss for s in exact], rtol=2e-2, atol=0)


def test_a_loss_scaler_changes_no_step_and_an_overflow_skips_one(sd15: Path, data: Path) -> None:
    """fp16's scaler, here on the CPU: gradients are unscaled before they are measured and clipped."""
    plain, scaled = (bench(sd15, data, optimizer__clip_norm=0.01, train__steps=4) for _ in range(2))
    scaler = scaled.scale(1024.0)
    steps = [b.train(3) for b in (plain, scaled)]
    for one, other in zip(*steps, strict=True):
        assert (one.loss, one.grad_norm) == pytest.approx((other.loss, other.grad_norm), rel=1e-5)
    assert_close(plain.weights(), scaled.weights(), rtol=0, atol=1e-6)
    before = scaled.weights()
    scaled.state.parameters[3].register_hook(lambda gradient: gradient / 0)
    (step,) = scaled.train(4)
    assert np.isfinite(step.loss) and not np.isfinite(step.grad_norm)
    assert step.skipped and scaled.state.bad_steps == 0
    assert_close(scaled.weights(), before, rtol=0, atol=0)
    assert scaler.get_scale() == 512.0


def test_an_overflow_at_every_scale_stops_the_run_and_one_while_the_scale_is_found_does_not(
    sd15: Path, data: Path
) -> None:
    b = bench(sd15, data, train__steps=40, train__patience=2)
    scaler = b.scale(2.0**16)
    before = b.weights()
    overflow = b.state.parameters[3].register_hook(lambda gradient: gradient / 0)
    assert all(step.skipped for step in b.train(15)) and b.state.bad_steps == 0
    overflow.remove()
    assert not b.train(16)[0].skipped and scaler.get_scale() == 2.0
    b.state.parameters[3].register_hook(lambda gradient: gradient / 0)
    with pytest.raises(TrainError, match=r"overflowed in fp16 for 2 steps in a row, until step 20, .*1\.2e-01") as e:
        b.train()
    assert e.value.exit_code == 4 and "bf16" in e.value.hint and b.state.step == 20
    assert any(not torch.equal(t, before[n]) for n, t in b.weights().items())


def test_a_loss_that_is_not_finite_counts_with_a_loss_scaler_too(sd15: Path, data: Path) -> None:
    b = poisoned(bench(sd15, data, train__steps=9, train__patience=2), 1, 2)
    b.scale(2.0**16)
    with pytest.raises(TrainError, match="loss was not finite for 2 steps in a row, until step 3"):
        b.train()


def test_gradients_that_are_not_finite_are_not_called_a_loss(sd15: Path, data: Path) -> None:
    b = bench(sd15, data, train__steps=9, train__patience=2)
    b.state.parameters[3].register_hook(lambda gradient: gradient / 0)
    with pytest.raises(TrainError, match="gradients were not finite for 2 steps in a row, until step 2"):
        b.train()


def test_8_bit_adamw_trains_about_like_adamw(sd15: Path, data: Path) -> None:
    """Tensors of 4096 elements and more have their state in 8 bits: rank 128 makes some."""
    moved = []
    for name in ("adamw", "adamw8bit"):
        b = bench(sd15, data, optimizer__name=name, adapter__rank=128, train__steps=4)
        before = b.weights()
        assert all(not s.skipped for s in b.train())
        moved.append(torch.cat([(t - before[n]).flatten() for n, t in b.weights().items()]))
        kinds = {t.dtype for slots in b.state.optimizer.state.values() for t in slots.values() if torch.is_tensor(t)}
        assert (torch.uint8 in kinds) == (name == "adamw8bit")
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.95


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
def test_a_compiled_denoiser_gives_the_same_losses(sd15: Path, data: Path) -> None:
    """1e-4. Compiles for minutes."""
    losses = [[s.loss for s in bench(sd15, data, train__compile=on, train__steps=2).train()] for on in (False, True)]
    assert_close(losses[0], losses[1], rtol=0, atol=1e-4)


# -- ranks ------------------------------------------------------------------------------------------------------------


class Apart(Ranks):
    """One of two ranks that does not talk."""

    def sum(self, tensors: Sequence[Tensor]) -> None: ...


def test_the_shares_of_two_ranks_sum_to_the_step_of_one(sd15: Path, tmp_path: Path) -> None:
    """Also where the run ends inside a group: 7 batches, 4 a step, so the last step has 2 + 1."""
    data = pictures(tmp_path / "seven", [SQUARE] * 7)
    alone = bench(sd15, data, train__epochs=1, train__accumulate=4, adapter__dropout=0.3)
    shared = bench(sd15, data, world=2, train__epochs=1, train__accumulate=2, adapter__dropout=0.3)
    assert alone.plan.steps == shared.plan.steps == 2
    for k in range(2):
        for b in (alone, shared):
            b.grow()
            b.state.step = k
        whole = alone.gradients(k)
        parts = [shared._replace(machine=shared.machine._replace(ranks=Apart(rank, 2))) for rank in range(2)]
        names = sorted(n for part in parts for batch in part.step(k) for n in batch.names)
        assert names == sorted(n for batch in alone.step(k) for n in batch.names)
        summed = [part.gradients(k) for part in parts]
        assert_close({n: summed[0][n] + summed[1][n] for n in whole}, whole, rtol=1e-4, atol=1e-8)


def test_ranks_encode_their_own_share_first_and_all_of_it_in_the_end() -> None:
    rotated = [Ranks(rank, 3).rotated(range(8)) for rank in range(3)]
    assert [list(some)[:3] for some in rotated] == [[0, 1, 2], [2, 3, 4], [5, 6, 7]]
    assert all(sorted(some) == list(range(8)) for some in rotated) and Ranks().rotated("ab") == ["a", "b"]


@pytest.mark.slow
def test_two_ranks_train_the_same_adapter_as_one(sd15: Path, tmp_path: Path) -> None:
    """The same global batch: 2 ranks x 2 against 1 x 4; buckets, both components, a prior and adapter dropout."""
    data = pictures(tmp_path / "seven", [SQUARE] * 4 + [WIDE] * 3)
    classes = pictures(tmp_path / "classes", [SQUARE] * 3, trigger="", seed=1)
    arguments = [str(sd15), str(data), str(classes)]
    one_rank(*arguments, tmp_path / "one", 4)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d",
         "--rdzv_endpoint", "127.0.0.1:0", __file__, *arguments, str(tmp_path / "two"), "2"],
        env=rank_environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "rank0.safetensors") for name in ("one", "two"))
    other = load_file(tmp_path / "two" / "rank1.safetensors")
    assert_close(two, other, rtol=0, atol=0)
    assert_close(one, two, rtol=0, atol=1e-5)
    moved = load_file(tmp_path / "one" / "start.safetensors")
    assert all(not torch.equal(one[n], moved[n]) for n in one)
    steps = {name: [line.split("|") for line in (tmp_path / name).joinpath("rank0.txt").read_text().splitlines()]
             for name in ("one", "two")}  # fmt: skip
    second = [line.split("|") for line in (tmp_path / "two" / "rank1.txt").read_text().splitlines()]
    for alone, first, rest in zip(steps["one"], steps["two"], second, strict=True):
        assert alone[0] == first[0] == rest[0]  # learning rates
        assert float(alone[1]) == pytest.approx(float(first[1]), abs=1e-5)
        assert sorted(alone[2].split()) == sorted([*first[2].split(), *rest[2].split()])


def rank_environment() -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def one_rank(base: str, data: str, classes: str, out: Path, accumulate: int) -> None:
    """What a process of the test above does; the epoch ends inside a group, so the last step is short."""
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    b = bench(base, data, world, train__epochs=3, train__batch=2, train__accumulate=accumulate,
              prior__mode="images", prior__path=Path(classes), prior__prompt="a thing", adapter__components=BOTH,
              adapter__dropout=0.1, optimizer__schedule="cosine", optimizer__warmup_steps=1,
              optimizer__learning_rate=1e-3)  # fmt: skip
    rank = b.machine.ranks.rank
    assert b.machine.ranks.world_size == world
    out.mkdir(exist_ok=True)
    if rank == 0:
        save_file(b.weights(), out / "start.safetensors")
    lines = []
    for k, step in enumerate(b.train()):
        names = [name for batch in b.step(k) for name in batch.names]
        lines.append(f"{step.rates}|{step.loss + (step.prior_loss or 0.0)}|{' '.join(names)}")
    (out / f"rank{rank}.txt").write_text("\n".join(lines))
    save_file(b.weights(), out / f"rank{rank}.safetensors")
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_rank(*sys.argv[1:4], Path(sys.argv[4]), int(sys.argv[5]))


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "fused"), [(128, False), (256, True)])
def test_attention_is_written_out_where_that_is_faster(
    sd15: Path, data: Path, side: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 256 positions of latents and fewer; before and after, torch chooses as it likes."""
    made, seen = bench(sd15, data, train__steps=1, data__resolution=side), []
    predict = made.family.predict

    def watched(*a: object) -> Tensor:
        seen.append(torch.backends.cuda.flash_sdp_enabled())
        return predict(*a)  # type: ignore[arg-type]

    monkeypatch.setattr(made.family, "predict", watched)
    made.train()
    assert seen == [fused] and torch.backends.cuda.flash_sdp_enabled()


def test_written_out_or_fused_attention_gives_the_same_gradients(sd15: Path, data: Path) -> None:
    made = bench(sd15, data)
    made.grow()
    fused = made.gradients()
    with trainer.attention_backend(made.batches.step(0, made.machine.ranks)):
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert_close(made.gradients(), fused, rtol=1e-4, atol=1e-7)


# --- the running mean -----------------------------------------------------------------------------------------------


def test_the_running_mean_is_the_weighted_sum_of_all_the_weights_that_were(sd15: Path, data: Path) -> None:
    """Against the sum written out: each step's weights times what the later steps left of them."""
    made = bench(sd15, data, train__steps=4, train__ema=0.35, optimizer__learning_rate=1e-2)
    seen = [made.weights()]
    for _ in made.steps():
        seen.append(made.weights())
    kept = [min(0.35, (1 + k) / (10 + k)) for k in range(1, 5)]
    assert kept[0] < kept[2] < kept[3] == 0.35
    share = [float(np.prod(kept[k:])) * (1 - kept[k - 1] if k else 1) for k in range(5)]
    assert sum(share) == pytest.approx(1)
    assert made.state.ema is not None
    for (name, last), mean in zip(made.weights().items(), made.state.ema, strict=True):
        assert_close(mean, sum(w[name] * s for w, s in zip(seen, share, strict=True)), rtol=1e-5, atol=1e-7)
        assert not torch.equal(mean, last)


def test_the_running_mean_takes_the_place_of_the_weights_and_gives_it_back(sd15: Path, data: Path) -> None:
    made = bench(sd15, data, train__steps=2, train__ema=0.5, optimizer__learning_rate=1e-2)
    made.train()
    assert made.state.ema is not None
    last, mean = made.weights(), [m.clone() for m in made.state.ema]
    with trainer.ema_weights(made.state):
        assert_close(list(made.weights().values()), mean, rtol=0, atol=0)
    assert_close(made.weights(), last, rtol=0, atol=0)
    assert_close(made.state.ema, mean, rtol=0, atol=0)
