"""The diffusion path and its targets: diffusers' own, over every row of the table."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from models import tiny_base
from torch.testing import assert_close

from finetune import families, shipped
from finetune.process import Process, betas, discrete

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
    assert_close(ours.alpha.square(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


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
        assert_close(process.alpha.square(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
        assert {"epsilon": "epsilon", "v": "v_prediction"}[process.prediction] == theirs.config.prediction_type
        assert len(process) == theirs.config.num_train_timesteps


def test_levels_become_rows_uniformly() -> None:
    process, _ = both("epsilon", False)
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(process.rows(levels), torch.arange(1000))
    assert process.rows(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 999]
