"""The shorter forward pass of LoRA layers gives what PEFT's gives, to the last bit, and leaves all else to PEFT."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn

from finetune.adapters import attach, layers

PRESETS = {"denoiser": {"all": ("to_q", "conv1", "mix")}}


class Small(nn.Module):
    """A projection, a convolution with a stride and one of 1 x 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mix, self.to_q = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_q(self.mix(self.conv1(x)).flatten(2).transpose(1, 2))
        return out


def model(short: bool, alpha: float = 4.0, **options: Any) -> Small:
    """The same weights each time, with the adapter's own as if they were trained."""
    torch.manual_seed(0)
    found = Small()
    told = LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "conv1", "mix"], **options)
    inject_adapter_in_model(told, found)
    for layer in list(found.modules()) if short else ():
        layers.shorten(layer)
    for p in found.parameters():
        p.data = torch.randn(p.shape)
    return found


def computed(found: Small, kind: torch.dtype = torch.float32) -> list[Tensor]:
    """The output, and every gradient."""
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.manual_seed(2)
    with torch.autocast("cpu", kind, enabled=kind != torch.float32):
        out = found(x)
    out.float().square().sum().backward()
    assert x.grad is not None
    return [out, x.grad, *(p.grad for p in found.parameters() if p.grad is not None)]


@pytest.fixture
def asked_peft(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type]]:
    """PEFT's own passes that were taken."""
    asked: list[type] = []
    for kind in (Linear, Conv2d):
        own = kind.forward

        def told(layer: Any, *args: Any, own: Any = own, kind: type = kind, **kwargs: Any) -> Any:
            asked.append(kind)
            return own(layer, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", told)
    yield asked


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [4.0, 2.0, 16.0, 3.0, 7.3])
def test_outputs_and_gradients_are_pefts_to_the_last_bit(alpha, kind, asked_peft):
    theirs = computed(model(False, alpha), kind)
    assert len(asked_peft) == 3
    ours = computed(model(True, alpha), kind)
    assert len(asked_peft) == 3, "the shorter pass was not taken"
    assert len(ours) == len(theirs) == 8 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}], ids=["dropout", "dora"])
def test_what_is_more_than_a_product_is_left_to_peft(options, asked_peft):
    theirs, ours = (computed(model(short, **options)) for short in (False, True))
    assert len(asked_peft) == 6 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_base_in_half_precision_without_autocast_is_left_to_peft(device, asked_peft):
    found = model(True).bfloat16().to(device)
    for name, p in found.named_parameters():
        p.data = p.data.float() if "lora_" in name else p.data
    assert found(torch.randn(2, 3, 6, 6, dtype=torch.bfloat16, device=device)).dtype == torch.bfloat16
    assert len(asked_peft) == 3


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_disabled_merged_and_a_second_adapter_are_as_pefts():
    x = torch.randn(2, 3, 6, 6)
    pair = [model(False), model(True)]
    whole = pair[1](x)
    with attach.disabled({"denoiser": pair[1]}):
        off = pair[1](x)
    with attach.disabled({"denoiser": pair[0]}):
        assert torch.equal(off, pair[0](x)) and not torch.allclose(off, whole)
    for found in pair:
        for layer in found.modules():
            if isinstance(layer, Linear | Conv2d):
                layer.merge()
    assert torch.equal(pair[0](x), pair[1](x))
    torch.testing.assert_close(pair[1](x), whole, rtol=1e-4, atol=1e-3)
    second = [model(False), model(True)]
    for found in second:
        torch.manual_seed(3)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), found, "second")
        found.to_q.set_adapter(["default", "second"])
    assert torch.equal(second[0](x), second[1](x)) and not torch.equal(second[1](x), whole)


def test_an_attached_adapter_has_the_shorter_pass_and_pefts_names():
    from finetune.recipe import LoRA

    found = Small()
    trained = attach.attach({"denoiser": found}, PRESETS, LoRA(rank=4, alpha=4.0, targets="all"), seed=0)
    assert [type(m).__name__ for m in (found.conv1, found.mix, found.to_q)] == [
        "ShortConv2d",
        "ShortConv2d",
        "ShortLinear",
    ]
    assert trained["denoiser"].keys() == {
        f"{name}.lora_{half}.default.weight" for name in ("conv1", "mix", "to_q") for half in "AB"
    }
