"""The diffusion path and its targets: diffusers' own, over every row of the table."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from support.bases import tiny_base
from torch.testing import assert_close

from finetune import families
from finetune import resources as shipped
from finetune.diffusion.process import Process, RectifiedFlow, Shift, betas, discrete

TABLE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = pytest.mark.parametrize(
    ("prediction", "zero_snr"), [("epsilon", False), ("v", False), ("v", True)], ids=["epsilon", "v", "zero SNR"]
)


def both(prediction: str, zero_snr: bool, **changes: object) -> tuple[Process, DDIMScheduler]:
    table = TABLE | changes
    named = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    theirs = DDIMScheduler(**table, prediction_type=named, rescale_betas_zero_snr=zero_snr)
    rows = betas(table["beta_schedule"], table["beta_start"], table["beta_end"], table["num_train_timesteps"])
    return discrete(rows, prediction, zero_snr), theirs


@KINDS
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_the_path_and_the_target_are_diffusers(prediction: str, zero_snr: bool, beta_schedule: str) -> None:
    """Over all rows. Theirs is a float32 product of 1000 factors, so it is good to about 1e-5 itself."""
    ours, theirs = both(prediction, zero_snr, beta_schedule=beta_schedule)
    t = torch.arange(1000)
    x0, noise = torch.randn(2, 1000, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=0, atol=1e-4)
    if prediction == "v":
        assert_close(ours.target(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=0, atol=1e-4)
    else:
        assert ours.target(x0, noise, t) is noise
    assert_close(ours.path.alpha.square(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


@KINDS
def test_what_is_split_is_what_was_put_together(prediction: str, zero_snr: bool) -> None:
    ours, theirs = both(prediction, zero_snr)
    t = torch.tensor([0, 10, 500, 900, 999])
    x0, noise = torch.randn(2, 5, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    xt, output = ours.add_noise(x0, noise, t), ours.target(x0, noise, t)
    assert_close(ours.split(xt, output, t), (x0, noise), rtol=0, atol=1e-4)
    theirs.set_timesteps(1000)
    for i, row in enumerate(t.tolist()):
        origin = theirs.step(output[i : i + 1], row, xt[i : i + 1]).pred_original_sample
        assert_close(origin.clamp(-1, 1)[0], x0[i].clamp(-1, 1), rtol=0, atol=1e-3)


def test_the_tiny_and_the_bundled_base_get_their_own_schedulers_table(tmp_path: Path) -> None:
    for base in (tiny_base(tmp_path / "a", "sd15"), tiny_base(tmp_path / "b", "sd21"), shipped.POCKET):
        process = families.load(str(base)).process
        theirs = DDIMScheduler.from_pretrained(base, subfolder="scheduler")
        assert_close(process.path.alpha.square(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
        assert {"epsilon": "epsilon", "v": "v_prediction"}[process.prediction] == theirs.config.prediction_type
        assert len(process.path.alpha) == theirs.config.num_train_timesteps


def test_levels_become_rows_uniformly() -> None:
    process, _ = both("epsilon", False)
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(process.at(levels), torch.arange(1000))
    assert process.at(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 999]


# -- flow -------------------------------------------------------------------------------------------------------------

FLUX = Shift(math.exp(0.5), math.exp(1.15), few=256 * 4, many=4096 * 4)


def levels(count: int = 20000) -> torch.Tensor:
    """As chance's levels are, evenly."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_the_straight_path_and_its_target_are_diffusers() -> None:
    flow = Process(RectifiedFlow(), "flow")
    theirs = FlowMatchEulerDiscreteScheduler()
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    t = theirs.sigmas[[100, 500, 900]]
    noisy = flow.add_noise(x0, noise, t)
    assert_close(noisy, theirs.scale_noise(x0, theirs.timesteps[[100, 500, 900]], noise))
    assert_close(flow.split(noisy, flow.target(x0, noise, t), t), (x0, noise))
    theirs.set_timesteps(4)  # a step of theirs along the true flow lands on the path at the next time
    start = flow.add_noise(x0, noise, theirs.sigmas[:1].repeat(3))
    stepped = theirs.step(noise - x0, theirs.timesteps[0], start).prev_sample
    assert_close(stepped, flow.add_noise(x0, noise, theirs.sigmas[1:2].repeat(3)))


def test_logit_normal_times_have_the_papers_mean_and_more_mean_is_more_noise() -> None:
    """T14. logit(t) is normal: its mean and deviation over all levels are those asked for; the median is sigmoid(m)."""
    for mean, deviation in ((0.0, 1.0), (1.0, 0.5), (-1.0, 2.0)):
        t = RectifiedFlow("logit_normal", mean, deviation).sample_timesteps(levels(), 64)
        logits = torch.logit(t.double())
        assert t.dtype == torch.float32 and 0 < t.min() and t.max() < 1
        assert logits.mean().item() == pytest.approx(mean, abs=2e-3)
        assert logits.std().item() == pytest.approx(deviation, rel=2e-3)
    less, same, more = (
        RectifiedFlow("logit_normal", m).sample_timesteps(levels(), 64).mean().item() for m in (-1, 0, 1)
    )
    assert [less, same, more] == pytest.approx([0.30, 0.50, 0.70], abs=0.01)
    assert torch.equal(RectifiedFlow("uniform").sample_timesteps(levels(), 64), levels().float())
    assert (
        RectifiedFlow().sample_timesteps(torch.zeros(1, dtype=torch.float64), 64).item() > 0
    )  # chance may say exactly 0


def test_the_shift_is_that_of_diffusers_scheduler() -> None:
    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = RectifiedFlow("uniform", shift=Shift(3.0)).sample_timesteps(
        torch.arange(1000, 0, -1, dtype=torch.float64) / 1000, 64
    )
    assert_close(ours, static.sigmas[:1000])
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for cells, mu in ((256 * 4, 0.5), (4096 * 4, 1.15), (1024 * 4, 0.63)):
        dynamic.set_timesteps(sigmas=[0.9, 0.5, 0.1], mu=mu)
        drawn = RectifiedFlow("uniform", shift=FLUX).sample_timesteps(
            torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64), cells
        )
        assert_close(drawn, dynamic.sigmas[:3], rtol=1e-5, atol=0)


def test_a_recipes_word_changes_how_times_are_drawn_and_nothing_of_a_table() -> None:
    flow = Process(RectifiedFlow(shift=FLUX), "flow")
    assert flow.with_timestep_sampling(None, None, None, None) == flow
    assert flow.with_timestep_sampling("uniform", None, None, 1.0).path == RectifiedFlow("uniform", shift=Shift(1.0))
    assert flow.with_timestep_sampling(None, 0.5, 2.0, None).path == RectifiedFlow("logit_normal", 0.5, 2.0, FLUX)
    table, _ = both("epsilon", False)
    assert table.with_timestep_sampling("uniform", 1.0, 1.0, 3.0) is table


def test_min_snr_is_the_same_weight_on_x0_whatever_is_predicted() -> None:
    """Errors of the same size in x0 have the same weighted loss, in epsilon, v and flow, at the same SNR."""
    table, _ = both("epsilon", False)
    t = torch.tensor([10, 300, 600, 900])
    found = []
    for prediction in ("epsilon", "v"):
        process = Process(table.path, prediction)
        _, gain = off_by_one_in_x0(process, t)
        found.append(process.min_snr(t, 5.0) * gain.square())
    assert_close(found[0], found[1], rtol=1e-3, atol=0)
    assert_close(found[0], table.snr(t).clamp(max=5.0), rtol=1e-3, atol=0, check_dtype=False)
    flow, s = Process(RectifiedFlow(), "flow"), torch.tensor([0.1, 0.4, 0.6, 0.9])
    _, gain = off_by_one_in_x0(flow, s)
    assert_close((flow.min_snr(s, 5.0) * gain.square()).float(), flow.snr(s).clamp(max=5.0), rtol=1e-3, atol=0)


def off_by_one_in_x0(process: Process, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0, by how much the output must be off to be off by one in x0)."""
    x0, noise = torch.randn(2, len(t), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = process.add_noise(x0, noise, t)
    true = process.target(x0, noise, t)
    moved, _ = process.split(noisy, true + 1e-3, t)
    return x0, (1e-3 / (moved - x0)).abs().flatten()
