"""What a UNet predicts, asked by one forward pass: of the pocket base, and of models of which all is known."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from support.bases import tiny_base
from torch import Tensor, nn

from finetune import families
from finetune import resources as shipped
from finetune.diffusion.process import betas
from finetune.errors import BaseError
from finetune.families import probe
from finetune.families.probe import probe_prediction

SCALES = (1 - betas("scaled_linear", 0.00085, 0.012, 1000)).cumprod(0).sqrt().float()
PARAMETRISATIONS = ("epsilon", "v", "x0")


class Ideal(nn.Module):
    """The best denoiser of pictures of a known spectrum, as Wiener's filter: exact, of each parametrisation.

    With a UNet inside, that UNet's own prediction of v in the parametrisation that is asked for.
    """

    def __init__(self, predicts: str, config: Any, unet: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.predicts, self.config, self.unet = nn.Parameter(torch.ones(1)), predicts, config, unet

    def forward(self, noisy: Tensor, t: Tensor, **given: Any) -> tuple[Tensor]:
        alpha = SCALES[t].view(-1, 1, 1, 1)
        sigma = (1 - alpha.square()).sqrt()
        if self.unet is None:
            x0 = self._denoised(noisy, alpha, sigma)
            noise = (noisy - alpha * x0) / sigma
            v = alpha * noise - sigma * x0
        else:
            v = self.unet(noisy, t, **given)[0].float()
        made = {"v": v, "epsilon": sigma * noisy + alpha * v, "x0": alpha * noisy - sigma * v}
        return (made[self.predicts],)

    def _denoised(self, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        side = noisy.shape[-1]
        frequency = torch.fft.fftfreq(side) * side
        power = (1 + frequency[:, None] ** 2 + frequency[None] ** 2) ** -1.5
        power /= power.mean()  # pictures of unit variance
        gain = alpha * power / (alpha.square() * power + sigma.square())
        return torch.fft.ifft2(torch.fft.fft2(noisy) * gain).real


def verdict(module: nn.Module) -> str:
    try:
        return probe_prediction(module)
    except BaseError as e:
        assert "cannot be told" in e.problem and "objective.prediction" in e.hint
        return "cannot tell"


EXPECTED = {"epsilon": "epsilon", "v": "v", "x0": "cannot tell"}


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
@pytest.mark.parametrize("config", [{}, {"addition_embed_type": "text_time"}], ids=["sd", "sdxl"])
def test_an_ideal_denoiser_is_told_by_its_parametrisation(predicts: str, config: dict[str, str]) -> None:
    made = UNet2DConditionModel.load_config(shipped.POCKET / "unet") | config
    sizes = {"projection_class_embeddings_input_dim": 96, "addition_time_embed_dim": 8}

    class Config:
        pass

    told = Config()
    vars(told).update(made | sizes)
    assert verdict(Ideal(predicts, told)) == EXPECTED[predicts]


@pytest.fixture(scope="module")
def pocket() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(shipped.POCKET / "unet").float().eval()


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_a_trained_base_is_told_by_its_parametrisation(pocket: UNet2DConditionModel, predicts: str) -> None:
    assert verdict(Ideal(predicts, pocket.config, pocket)) == EXPECTED[predicts]


def test_the_pocket_base_is_probed_as_v(pocket: UNet2DConditionModel) -> None:
    assert verdict(pocket) == "v"


@pytest.mark.parametrize("variant", ["sd15", "sd21", "sdxl"])
def test_an_untrained_unet_is_not_taken_for_one_that_predicts_v(variant: str, tmp_path: Any) -> None:
    """It is as unlike its input as v is, at pure noise."""
    for seed in range(3):
        family = families.load(str(tiny_base(tmp_path / str(seed), variant, seed=seed)))
        assert verdict(family.parts["unet"]) == "cannot tell"


def test_a_unet_that_gives_no_numbers_is_not_told(pocket: UNet2DConditionModel) -> None:
    broken = Ideal("v", pocket.config)
    broken._denoised = lambda noisy, alpha, sigma: noisy * float("nan")  # type: ignore[method-assign]
    assert verdict(broken) == "cannot tell"


def test_the_probe_asks_once(pocket: UNet2DConditionModel) -> None:
    calls = list[tuple[int, ...]]()
    with pytest.MonkeyPatch.context() as patch:
        forward = pocket.forward
        patch.setattr(pocket, "forward", lambda x, t, **k: calls.append(x.shape) or forward(x, t, **k))
        probe_prediction(pocket)
    assert calls == [(2, 4, probe.CELLS, probe.CELLS)]
