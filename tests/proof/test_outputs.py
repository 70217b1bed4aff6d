"""The proof is not circular: a file is held against what the trained model computed; all that was trained counts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.bases import tiny_base
from support.bench import BOTH, Bench, bench
from support.photos import pictures
from support.runs import short, train
from torch import nn

from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState
from finetune.adapters.methods import METHODS
from finetune.errors import VerifyError
from finetune.events import Verified
from finetune.families.base import components
from finetune.files.metadata import About
from finetune.machine import DTYPES
from finetune.proof import export, outputs, verify
from finetune.recipe import LowRank

torch.set_num_threads(1)

Method = Callable[[nn.Module, Mapping[str, tuple[str, ...]], LowRank, str], None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "data")


def dora(module: nn.Module, presets: Mapping[str, tuple[str, ...]], config: LowRank, component: str) -> None:
    """A method that trains what nobody reads."""
    chosen = adapters.targets(module, presets, adapters._written(config, component))
    module.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=config.rank, target_modules=chosen, use_dora=True), module)


INJECT = adapters._inject


def with_bias(module: nn.Module, presets: Mapping[str, tuple[str, ...]], config: LowRank, component: str) -> None:
    INJECT(module, presets, config, component)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name.endswith("to_out.0.base_layer.bias"))


OVERLOOKED: dict[str, tuple[Method, str]] = {
    "a magnitude vector": (dora, "lora_magnitude_vector"),
    "a bias": (with_bias, "base_layer.bias"),
}


def trained(data: Path, base: str, method: Method, patched: pytest.MonkeyPatch) -> Bench:
    patched.setattr(adapters, "_inject", method)
    patched.setattr(adapters, "METHODS", {"lora": METHODS["lora"]})  # nobody reads what is not LoRA's
    b = bench(base, data, data__resolution=64, adapter__targets=("attn1.to_q", "attn1.to_out.0"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in b.state.parameters:
            p += torch.randn(p.shape, generator=generator) * 0.05
    return b


def proved(
    b: Bench, base: str, out: Path, live: AdapterState | None = None, dtype: export.Dtype = "float32"
) -> verify.Report:
    """The end of a run: read, write, keep the outputs, let go, verify."""
    live = live or adapters.read_changes(components(b.family))
    file = export.write_file(live, out, "universal", dtype, About.of(b.plan.facts))
    settings = b.plan.recipe.train
    kept = outputs.reference(b.family, b.captions.known, DTYPES[settings.precision], settings.base_bits, False)
    return verify.verify(file, base, live, trained=kept)


@pytest.mark.parametrize("what", OVERLOOKED)
def test_what_is_trained_and_not_read_is_refused_by_name(
    what: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, name = OVERLOOKED[what]
    b = trained(data, "pocket", method, monkeypatch)
    with pytest.raises(VerifyError, match=rf"of \d+ trained tensors are not in what is exported, unet\..*{name}"):
        adapters.check_read(b.state.trainable, adapters.read_changes(components(b.family)))


@pytest.mark.parametrize("what", OVERLOOKED)
def test_what_is_trained_and_not_read_is_seen_in_the_outputs(
    what: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = trained(data, "pocket", OVERLOOKED[what][0], monkeypatch)
    report = proved(b, "pocket", tmp_path / "a.safetensors")
    assert not report.ok and report.outputs is not None and report.outputs > 0.02
    assert any("the outputs differ from the trained model's by" in problem for problem in report.problems)
    assert report.live == 0.0  # what was read is in the file: this says nothing of what was trained


def test_a_run_does_not_call_a_file_verified_that_lacks_what_was_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_inject", dora)
    monkeypatch.setattr(adapters, "METHODS", {"lora": METHODS["lora"]})
    told: list[Any] = []
    with pytest.raises(VerifyError, match=r"not in what is exported, unet.*lora_magnitude_vector"):
        train(short(data), tmp_path / "out", told.append)
    monkeypatch.setattr(adapters, "check_read", lambda *_: None)
    with pytest.raises(VerifyError, match="the outputs differ from the trained model's by"):
        train(short(data, train__steps=8), tmp_path / "again", told.append)
    assert not any(isinstance(event, Verified) for event in told)


def test_a_tensor_counts_once_and_to_the_bit(data: Path) -> None:
    b = bench("pocket", data, data__resolution=64)
    b.grow()
    read = adapters.read_changes(components(b.family))
    adapters.check_read(b.state.trainable, read)
    name = next(iter(read))
    for wrong in (read[name].down + 1e-7, read[name].up.mT, torch.zeros_like(read[name].down)):
        with pytest.raises(VerifyError, match=r"^1 of \d+ trained tensors"):
            adapters.check_read(b.state.trainable, read | {name: read[name]._replace(down=wrong)})
    with pytest.raises(VerifyError, match=r"^2 of"):
        adapters.check_read(b.state.trainable, {n: one for n, one in read.items() if n != name})


@pytest.mark.parametrize("dtype", export.FILE_DTYPES)
@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("sd15", {"adapter__components": BOTH}),
        ("sd15", {"adapter__components": BOTH, "train__precision": "bf16"}),
        ("flux", {"objective__guidance": 2.5}),
        ("flux", {"train__precision": "bf16", "train__base_bits": 4}),
        ("sd3", {"data__text_encoder_bits": 8}),
    ],
)
def test_a_right_file_computes_what_the_trained_model_did(
    base: str, settings: dict[str, object], dtype: export.Dtype, data: Path, tmp_path: Path
) -> None:
    where = str(tiny_base(tmp_path / "base", base))  # type: ignore[arg-type]
    b = bench(where, data, adapter__alpha=2.0, **settings)
    b.grow()
    report = proved(b, where, tmp_path / "a.safetensors", dtype=dtype)
    assert report.ok, report.problems
    assert report.outputs is not None
    assert report.outputs < outputs.LIMIT[export.FILE_DTYPES[dtype]]
    assert dtype == "float32" or report.outputs > 1e-5


@pytest.mark.parametrize("dtype", export.FILE_DTYPES)
def test_a_file_that_is_off_by_a_little_more_than_its_dtype_is_refused(
    dtype: export.Dtype, data: Path, tmp_path: Path
) -> None:
    b = bench("pocket", data, data__resolution=64)
    b.grow()
    factor = 1 + 3 * outputs.LIMIT[export.FILE_DTYPES[dtype]]
    off = {n: one._replace(scale=one.scale * factor) for n, one in adapters.read_changes(components(b.family)).items()}
    report = proved(b, "pocket", tmp_path / "a.safetensors", off, dtype)
    assert [p for p in report.problems if "the outputs differ from the trained model's by" in p], report
    assert report.live == pytest.approx(0, abs=4e-3)


def test_of_a_large_base_a_wrong_file_is_seen_in_bf16(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rounding inside the model is of the size of small changes, only larger ones can be told apart."""
    monkeypatch.setattr(verify, "LARGE", 0)
    base = str(tiny_base(tmp_path / "base", "flux"))
    b = bench(base, data, train__precision="bf16", adapter__targets="all")
    b.grow(0.2)
    live = adapters.read_changes(components(b.family))
    kept = outputs.reference(b.family, b.captions.known, torch.bfloat16, None, True)
    half = {n: one._replace(scale=one.scale / 2) for n, one in live.items()}
    for modules, right in ((live, True), (half, False)):
        file = export.write_file(modules, tmp_path / "a.safetensors", "universal", "float32", About.of(b.plan.facts))
        report = verify.verify(file, base, modules, trained=kept)
        assert report.ok is right, report
        assert right or "the outputs differ from the trained model's by" in report.problems[0]


def test_outputs_that_are_not_finite_agree_with_nothing() -> None:
    bad, good = torch.tensor([float("nan")]), torch.tensor([1.0])
    assert outputs.off(good, bad, good) == outputs.off(bad, good, good) == float("inf")
    assert not outputs.agree(good, bad, good, 1.0) and not outputs.agree(bad, good, good, 1.0)
