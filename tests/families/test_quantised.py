"""A frozen denoiser in 4 bits: what it holds, that training moves only the adapter, and that runs end proved."""

import gc
import weakref
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from families.cases import USUAL, Case, small_base
from peft.utils.integrations import dequantize_module_weight
from support.bases import Variant, tiny_base
from support.bench import bench, settled
from support.photos import pictures
from support.runs import train
from torch import Tensor, nn

from finetune import families, recipe
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters.change import target_shapes
from finetune.errors import RecipeError
from finetune.families import quantised
from finetune.families.base import Conditioning, Family, read
from finetune.planning import footprint
from finetune.proof import verify
from finetune.recipe import Loaded


def predicted(family: Family) -> Tensor:
    cells = family.encode_images(torch.zeros(1, 3, 64, 64)).mean.shape[1:]
    noisy = torch.randn(2, *cells, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.predict(noisy, torch.tensor([0.3, 0.7]), Conditioning(read(family, ["a cup", "a red cup"])))


def held_bytes(module: nn.Module) -> int:
    """Of all that a module keeps in memory."""
    tensors: list[Tensor] = []
    for layer in module.modules():
        tensors += layer._parameters.values()  # type: ignore[arg-type]
        state: Any = getattr(layer.weight, "quant_state", None) if hasattr(layer, "weight") else None
        if state is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum(t.nbytes for t in tensors if t is not None)


@pytest.mark.parametrize("case", USUAL, ids=[case.name for case in USUAL])
def test_blocks_are_held_in_4_bits_as_the_plan_counts_them(case: Case, tmp_path: Path) -> None:
    base = small_base(case, tmp_path / "base")
    whole, small = families.load(str(base)), families.load(str(base), base_bits=4)
    exact, rounded = predicted(whole), predicted(small)
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.4
    module = small.parts[small.denoiser_name]
    kinds = {n: type(m).__name__ for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    assert {kind for n, kind in kinds.items() if "blocks." in n or n.startswith("layers.")} == {"Linear4bit"}
    assert {kind for n, kind in kinds.items() if n.count(".") < 2} <= {"Linear"}
    plan = settled(base, pictures(tmp_path / "data"), train__base_bits=4)
    row = footprint.component_footprints(plan)[0]
    assert held_bytes(module) == row.weight_bytes - 4 * row.trainable
    assert row.parameters == sum(p.numel() for p in whole.parts[whole.denoiser_name].parameters())


@pytest.mark.parametrize("variant", ["sdxl", "flux", "qwen", "sd35"])
def test_a_step_is_that_of_a_base_with_the_rounded_weights(variant: Variant, tmp_path: Path) -> None:
    """Loss and gradients, against the same model in full precision with the weights that 4 bits can say."""
    base, data = tiny_base(tmp_path / "base", variant), pictures(tmp_path / "data")
    small, whole = (bench(base, data, train__base_bits=bits, adapter__targets="attention+ff") for bits in (4, None))
    module = whole.family.parts[whole.family.denoiser_name]
    with torch.no_grad():
        for name, layer in small.family.parts[small.family.denoiser_name].named_modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                module.get_submodule(name).get_parameter("weight").copy_(dequantize_module_weight(layer))
    small.grow()
    whole.grow()
    gradients, others = small.gradients(), whole.gradients()
    assert gradients.keys() == others.keys()
    assert small.train(1)[0].loss == pytest.approx(whole.train(1)[0].loss, rel=1e-5)
    size = max(float(g.abs().max()) for g in others.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-5 * size)


def test_its_fingerprint_is_that_of_the_weights_before_rounding(tmp_path: Path) -> None:
    """Which may differ in the last bit between devices: a run would not be resumed on another one."""
    base = str(tiny_base(tmp_path / "base", "flux"))
    whole, small = families.load(base), families.load(base, base_bits=4)
    assert whole.fingerprint("transformer") == small.fingerprint("transformer")


def test_what_is_let_go_is_gone_at_once(tmp_path: Path) -> None:
    """Without the collector, which may come too late for the memory of a GPU."""
    family = families.load(str(tiny_base(tmp_path / "base", "flux")), base_bits=4, text_bits=4)
    gc.collect()
    gc.disable()
    try:
        for part in ("transformer", "text_encoder_2"):
            layers = [m for m in family.parts[part].modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
            seen = [weakref.ref(m) for m in layers]
            del layers
            assert seen and all(ref() is not None for ref in seen)
            family.parts.release(part)
            assert not any(ref() is not None for ref in seen), part
    finally:
        gc.enable()


@pytest.mark.parametrize("variant", ["sdxl", "flux"])
def test_sites_and_sizes_are_those_of_the_base_in_full(variant: Variant, tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", variant), pictures(tmp_path / "data")
    small, whole = (bench(base, data, train__base_bits=bits) for bits in (4, None))
    name = whole.family.denoiser_name
    found, wanted = ({name: b.family.parts[name]} for b in (small, whole))
    norms, others = ({n: norm for n, (_, norm) in adapters.movement(each, {}).items()} for each in (found, wanted))
    assert norms.keys() == others.keys()
    assert all(norms[n] == pytest.approx(others[n], rel=0.05) and norms[n] != others[n] for n in others)
    assert target_shapes({name: families.load(str(base), base_bits=4).parts[name]}) == target_shapes(
        {name: families.load(str(base)).parts[name]}
    )


BLOCKS = ("blocks.*",)


class Wide(nn.Module):
    """Large enough for scales of scales, and for what bitsandbytes does on CPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 256)
        self.blocks = nn.ModuleList([nn.ModuleDict({"x": nn.Linear(256, 512)}) for _ in range(2)])


def test_the_bytes_of_wide_layers_are_counted_with_all_their_scales() -> None:
    module = Wide().bfloat16()
    told = quantised.weight_bytes(module, 2, BLOCKS)
    quantised.quantise(module, torch.device("cpu"), BLOCKS)
    assert held_bytes(module) == told


def test_looking_at_the_model_does_not_change_it() -> None:
    """On a CPU bitsandbytes would pack the weights for evaluation, and round the scales that training uses."""
    module = Wide().bfloat16()
    quantised.quantise(module, torch.device("cpu"), BLOCKS)
    module.eval()
    layer, x = module.blocks[0]["x"], torch.randn(4, 32, 256, dtype=torch.bfloat16)  # type: ignore[index]
    before, state = layer(x.clone().requires_grad_()), weights.fingerprint(module.state_dict())
    with torch.no_grad():
        layer(x)
    assert torch.equal(layer(x.clone().requires_grad_()), before)
    assert weights.fingerprint(module.state_dict()) == state


@pytest.mark.parametrize(
    ("variant", "precision"), [("sdxl", "auto"), ("flux", "auto"), ("flux", "bf16"), ("sdxl", "bf16")]
)
def test_a_run_ends_with_a_file_proved_on_the_base_in_full(variant: Variant, precision: str, tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", variant), pictures(tmp_path / "data")
    plan = settled(base, data, train__base_bits=4, train__steps=3, optimizer__learning_rate=1e-2, sample__every=2,
                   sample__steps=2, train__checkpoint_every=2, sample__prompts=("a cup",), prior__mode="own_prediction",
                   data__trigger="sks", train__gradient_checkpointing=True, validation__count=1)  # fmt: skip
    loaded = Loaded(recipe.replace(recipe.rewritten(plan.recipe), train__precision=precision), {}, Path("recipe.toml"))
    result = train(loaded, tmp_path / "run")
    assert result.report is not None and result.report.live == 0.0
    assert result.sheet.is_file() and verify.verify(result.path, str(base)).ok


@pytest.mark.parametrize("large", [True, False])
def test_the_file_is_proved_in_a_base_held_in_4_bits_and_in_a_small_one_by_its_outputs(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = tiny_base(tmp_path / "base", "flux"), pictures(tmp_path / "data")
    plan = settled(base, data, train__base_bits=4, train__steps=2, optimizer__learning_rate=1e-2, sample__steps=1,
                   sample__prompts=("a cup",))  # fmt: skip
    monkeypatch.setattr(verify, "LARGE", 0 if large else 4e9)
    held = []

    def noted(*asked: Any, **more: Any) -> Any:
        held.append(more.get("base_bits"))
        return load(*asked, **more)

    load = families.load
    monkeypatch.setattr(verify.families, "load", noted)
    loaded = Loaded(recipe.replace(recipe.rewritten(plan.recipe), train__precision="bf16"), {}, Path("recipe.toml"))
    report = train(loaded, tmp_path / "run").report
    assert report is not None and (report.stock_output is None) == large
    assert 4 in held and report.outputs is not None and (report.outputs < 1e-3) == (not large)


def test_what_cannot_be_held_in_4_bits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('base = "pocket"\n[data]\npath = "example:product"\n[adapter]\nmethod = "full"\n')
    with pytest.raises(RecipeError, match=r'train\.base_bits: has no effect with adapter\.method = "full"'):
        recipe.load(path, ["train.base_bits=4"])
    monkeypatch.setattr("finetune.planning.resolve.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"train\.base_bits needs bitsandbytes"):
        settled("pocket", pictures(tmp_path / "data"), train__base_bits=4)
