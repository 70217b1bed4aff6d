"""Bases too large to be opened in float32: the file is proved by its weights, in stock diffusers' live adapter."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bases import Variant, tiny_base
from support.bench import bench
from support.photos import pictures

from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState
from finetune.errors import BaseError
from finetune.families.base import components
from finetune.files import layouts
from finetune.files.metadata import About
from finetune.proof import export, verify
from finetune.proof.export import FILE_DTYPES


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LARGE", 0)


@pytest.fixture(scope="module", params=["flux", "sdxl"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, AdapterState]:
    """(base, file, what was trained); nobody may change them."""
    variant: Variant = request.param
    tmp_path = tmp_path_factory.mktemp(variant)
    base = tiny_base(tmp_path / "base", variant)
    b = bench(base, pictures(tmp_path / "data"), adapter__targets="attention+ff", train__precision="bf16")
    b.grow(0.05)
    live = adapters.read_changes(components(b.family))
    file = export.write_file(live, tmp_path / "a.safetensors", "universal", "float32", About.of(b.plan.facts))
    return str(base), file, live


@pytest.mark.parametrize("bits", [None, 4])
def test_a_good_file_is_proved(made: tuple[str, Path, AdapterState], bits: int | None) -> None:
    base, file, live = made
    report = verify.verify(file, base, live, bits)
    assert report.ok, report.problems
    assert report.stock is not None and report.stock < 5e-3 and report.live is not None and report.live < 1e-6
    assert report.stock_output is None
    assert all(e.weight > 1e-4 and e.output and e.output > 1e-4 for e in report.effects)


def test_in_4_bits_the_sizes_are_those_in_full_and_a_small_base_may_be_opened_so(
    made: tuple[str, Path, AdapterState], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, file, live = made
    few, full = (verify.verify(file, base, live, bits) for bits in (4, None))
    for one, other in zip(few.effects, full.effects, strict=True):
        assert one.weight == pytest.approx(other.weight, rel=0.1) and one.weight != other.weight
    monkeypatch.undo()
    report = verify.verify(file, base, live, 4)
    assert report.ok and report.stock_output is None and verify.verify(file, base, live).stock_output is not None


@pytest.mark.parametrize("bits", [None, 4])
def test_a_weight_off_by_a_hundredth_a_lost_module_and_nothing_at_all_are_found(
    made: tuple[str, Path, AdapterState], bits: int | None, tmp_path: Path
) -> None:
    base, file, live = made
    told = weights.read_header(file).metadata
    up = next(k for k in load_file(file) if k.endswith(("lora_B.weight", "lora_up.weight")))
    tensors = load_file(file)
    tensors[up] = tensors[up] * 1.01
    save_file(tensors, tmp_path / "b.safetensors", told)
    problems = verify.verify(tmp_path / "b.safetensors", base, live, bits).problems
    assert any("differs from the live model" in problem for problem in problems)
    stem = up.rpartition(".lora_")[0]
    tensors = {k: v for k, v in load_file(file).items() if not k.startswith(f"{stem}.")}
    save_file(tensors, tmp_path / "c.safetensors", told)
    lost = verify.verify(tmp_path / "c.safetensors", base, None, bits)
    assert any("expected, and not in the file" in problem for problem in lost.problems)
    nothing = {n: m._replace(up=torch.zeros_like(m.up)) for n, m in live.items()}
    save_file(layouts.diffusers(nothing, FILE_DTYPES["float32"]), tmp_path / "d.safetensors")
    idle = verify.verify(tmp_path / "d.safetensors", base, None, bits)
    assert any("changes nothing" in problem for problem in idle.problems)


def test_without_bitsandbytes_4_bits_are_refused_in_a_sentence(
    made: tuple[str, Path, AdapterState], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, file, live = made
    monkeypatch.setattr("finetune.families.find_spec", lambda _: None)
    with pytest.raises(BaseError, match="bits need bitsandbytes") as raised:
        verify.verify(file, base, live, 4)
    assert "pip install" in raised.value.hint
    assert verify.verify(file, base, live).ok
