"""DoRA is a method as LoRA is: trained, read whole, written where it is applied as trained, else refused by name."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.bases import tiny_base
from support.bench import Bench, bench
from support.photos import pictures
from support.runs import short, train

from finetune import families, recipe
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState
from finetune.adapters.dora import Dora
from finetune.adapters.lora import Lora
from finetune.adapters.methods import METHODS
from finetune.errors import RecipeError, VerifyError
from finetune.events import Verified
from finetune.families.base import components
from finetune.files import layouts, peft
from finetune.files.inspection import inspect
from finetune.files.metadata import About
from finetune.proof import applied, export, outputs, verify
from finetune.recipe import DoRA, Loaded, LoRA
from finetune.training import preflight

torch.set_num_threads(1)
TARGETS = ("attn1.to_q", "attn1.to_out.0", "conv1")
"""linear layers and convolutions"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "data")


def grown(base: str, data: Path, grow: bool = True, **changes: object) -> Bench:
    adapter = DoRA(rank=4, alpha=2.0, targets=TARGETS)
    few = {"adapter__targets": TARGETS, "adapter__rank": 4}
    b = bench(base, data, adapter=adapter, **few, data__resolution=64, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in b.state.parameters if grow else ():
            p += torch.randn(p.shape, generator=generator) * 0.05
    return b


def read(b: Bench) -> AdapterState:
    return adapters.read_changes(components(b.family))


def test_it_is_a_table_of_the_recipe_and_a_method() -> None:
    tables = {table.model_fields["method"].default for table in (LoRA, DoRA)}
    assert tables == set(METHODS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_starts_as_the_base_to_the_bit_and_every_part_is_reached(precision: str, data: Path) -> None:
    b = grown("pocket", data, grow=False, train__precision=precision)
    assert any("lora_magnitude_vector" in name for name in b.named())
    measured = preflight.measure(b.state, b.batches, b.plan.recipe, b.machine)
    assert measured.loss > 0


def test_what_is_read_is_what_pefts_own_merge_makes(data: Path) -> None:
    b = grown("pocket", data)
    found, layers = read(b), dict(adapters._layers(components(b.family)))
    assert {len(change.shape) for change in found.values()} == {2, 4}
    adapters.check_read(b.state.trainable, found)
    for name, layer in layers.items():
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge()
        after = layer.get_base_layer().weight.detach()
        torch.testing.assert_close(found[name].delta(before), after - before, rtol=0, atol=2e-6)
        assert found[name].norm(before) == pytest.approx(float((after - before).norm()), rel=1e-4)


def test_its_file_computes_in_stock_diffusers_what_was_trained(data: Path, tmp_path: Path) -> None:
    b = grown("pocket", data)
    live, about = read(b), About.of(b.plan.facts)
    done = export.export(live, tmp_path / "a", "x", {"diffusers", "merged"}, "float32", about, "pocket")
    kept = outputs.reference(b.family, b.captions.known, torch.float32, None, False)
    assert done.diffusers is not None and done.merged is not None and done.merged.lost < 1e-5
    for file in (done.diffusers, done.peft):
        report = verify.verify(file, "pocket", live, trained=kept)
        assert report.ok, report.problems
        assert report.outputs is not None and report.outputs < 1e-3
    merged = families.load(str(done.merged.folder))
    assert outputs.off(outputs.compute(merged, kept.inputs)["unet"], kept.outputs["unet"],
                       outputs.compute(families.load("pocket"), kept.inputs)["unet"]) < 1e-3  # fmt: skip


def test_without_its_magnitudes_a_file_is_refused(data: Path, tmp_path: Path) -> None:
    b = grown("pocket", data)
    live = read(b)
    kept = outputs.reference(b.family, b.captions.known, torch.float32, None, False)
    plain = {n: Lora(c.down, c.up, c.scale) for n, c in live.items() if isinstance(c, Dora)}
    file = export.write_file(plain, tmp_path / "a.safetensors", "universal", "float32", About.of(b.plan.facts))
    report = verify.verify(file, "pocket", trained=kept)
    assert not report.ok and report.outputs is not None and report.outputs > 0.1


def test_the_peft_directory_is_the_lossless_master_and_pefts_own_reader_agrees(data: Path, tmp_path: Path) -> None:
    b = grown("pocket", data)
    live = read(b)
    layouts.write_peft(live, tmp_path / "peft", {})
    again = layouts.read_adapter(tmp_path / "peft", live.keys(), "sd")
    assert (again.problems, again.unused) == ((), ()) and again.modules.keys() == live.keys()
    for name, change in live.items():
        torch.testing.assert_close(again.modules[name].tensors(), change.tensors(), rtol=0, atol=0)
        assert again.modules[name].scale == change.scale == 0.5
    fresh = families.load("pocket")
    before = {n: p.detach().clone() for n, p in fresh.parts["unet"].named_parameters()}
    merged = PeftModel.from_pretrained(fresh.parts["unet"], tmp_path / "peft" / "unet").merge_and_unload()
    for name, change in live.items():
        key = name.removeprefix("unet.") + ".weight"
        after = dict(merged.named_parameters())[key]
        torch.testing.assert_close(after, before[key] + change.delta(before[key]), rtol=0, atol=2e-6)
    assert inspect(tmp_path / "peft").method == "DoRA"


def test_a_configuration_that_says_dora_of_a_lora_is_a_problem(data: Path, tmp_path: Path) -> None:
    b = grown("pocket", data)
    layouts.write_peft(read(b), tmp_path, {})
    file = tmp_path / "unet" / peft.PEFT_WEIGHTS
    save_file({k: t for k, t in load_file(file).items() if "magnitude" not in k}, file)
    found = layouts.read_adapter(tmp_path, read(b).keys(), "sd")
    assert found.problems and all("LoRA, but its configuration says DoRA" in p for p in found.problems)


def test_a_layout_whose_readers_drop_the_magnitudes_refuses_it_by_name(data: Path) -> None:
    live = read(grown("pocket", data))
    with pytest.raises(VerifyError, match=r"DoRA has no universal file: A1111, ComfyUI") as e:
        layouts.universal(live, torch.float32, "sd")
    assert "diffusers" in e.value.hint and "merged" in e.value.hint
    text = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": next(iter(live.values()))}
    with pytest.raises(VerifyError, match="diffusers drops what DoRA has beside LoRA in a text encoder"):
        layouts.diffusers(text, torch.float32)


def lycoris(live: AdapterState) -> dict[str, torch.Tensor]:
    """As LyCORIS writes DoRA: dora_scale of a weight's rows."""
    kind, tensors = families.family_class("sd"), {}
    for name, change in live.items():
        key, roles = kind.kohya_name(name), change.tensors()
        ones = (1,) * (len(change.shape) - 1)
        tensors |= {f"{key}.lora_down.weight": roles["down"], f"{key}.lora_up.weight": roles["up"],
                    f"{key}.alpha": torch.tensor(change.scale * change.rank),
                    f"{key}.dora_scale": roles["magnitude"].reshape(-1, *ones)}  # fmt: skip
    return tensors


def test_strangers_files_are_read_exactly_and_what_programs_do_with_them_is_told(data: Path, tmp_path: Path) -> None:
    live = read(grown("pocket", data))
    save_file(lycoris(live), tmp_path / "a.safetensors")
    places = export.base_sites("pocket")
    found = layouts.read_adapter(tmp_path / "a.safetensors", places, "sd")
    assert found.problems == () and found.modules.keys() == live.keys()
    for name, change in live.items():
        weight = torch.randn(change.shape)
        torch.testing.assert_close(found.modules[name].delta(weight), change.delta(weight), rtol=0, atol=1e-6)
    assert "dora_scale" in found.misread["kohya"] and "LyCORIS" in found.misread["kohya"]
    assert found.misread.keys() == {"diffusers", "comfyui", "a1111", "forge", "kohya"}
    worst = export.convert(tmp_path / "a.safetensors", "diffusers", tmp_path / "b.safetensors", "pocket")
    assert worst < 1e-5


def test_magnitudes_of_columns_or_of_a_wrong_count_are_problems(tmp_path: Path) -> None:
    key = "lora_unet_mid_block_x_to_q"
    plain = {f"{key}.lora_down.weight": torch.ones(2, 6), f"{key}.lora_up.weight": torch.ones(4, 2)}
    for scale, words in ((torch.ones(1, 6), "columns"), (torch.ones(5, 1), "5 magnitudes for 4 rows")):
        save_file({**plain, f"{key}.dora_scale": scale}, tmp_path / "a.safetensors")
        found = layouts.read_adapter(tmp_path / "a.safetensors")
        assert len(found.problems) == 1 and words in found.problems[0] and not found.modules


@pytest.mark.parametrize("start", ["dora", "lora"])
def test_training_goes_on_from_an_adapter_exactly(start: str, data: Path, tmp_path: Path) -> None:
    first = read(grown("pocket", data))
    if start == "lora":
        first = {n: Lora(c.down, c.up, c.scale) for n, c in first.items() if isinstance(c, Dora)}
    layouts.write_peft(first, tmp_path / "peft", {"finetune.family": "sd"})
    second = bench("pocket", data, adapter=DoRA(rank=6, alpha=3.0, targets=TARGETS, init_from=tmp_path / "peft"),
                   adapter__rank=6, adapter__targets=TARGETS, data__resolution=64)  # fmt: skip
    after, base = read(second), families.load("pocket")
    for name, change in first.items():
        weight = applied.weight_of(base, name).detach()
        torch.testing.assert_close(after[name].delta(weight), change.delta(weight), rtol=0, atol=1e-5)
    moved = adapters.movement(components(second.family), first)
    assert all(change < 1e-3 * weight for change, weight in moved.values())


def test_lora_does_not_go_on_from_it(data: Path, tmp_path: Path) -> None:
    layouts.write_peft(read(grown("pocket", data)), tmp_path / "peft", {"finetune.family": "sd"})
    with pytest.raises(RecipeError, match="holds dora changes, which LoRA cannot go on from"):
        bench("pocket", data, adapter__targets=TARGETS, adapter__init_from=tmp_path / "peft", data__resolution=64)


def test_a_run_ends_with_a_proved_file(data: Path, tmp_path: Path) -> None:
    told: list[object] = []
    base = str(tiny_base(tmp_path / "base", "flux"))
    loaded = short(data, base, adapter=DoRA(rank=2, targets=("to_q", "to_v")), data__resolution=64)
    result = train(loaded, tmp_path / "out", told.append)
    assert result.path.name == "mug-diffusers.safetensors" and result.sheet is not None and result.sheet.is_file()
    proofs = [event for event in told if isinstance(event, Verified)]
    assert [event.path for event in proofs] == [result.path]
    assert all(event.outputs is not None and event.outputs < 1e-3 for event in proofs)
    assert any("magnitude" in key for key in weights.read_header(result.path).shapes)
    assert not (tmp_path / "out" / "adapter" / "mug.safetensors").exists()


def test_a_text_encoder_and_a_universal_file_are_refused_in_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    head = 'base = "pocket"\n[data]\npath = "example:product"\n[adapter]\nmethod = "dora"\n'
    path.write_text(head + 'components = ["denoiser", "text_encoder"]\n')
    with pytest.raises(RecipeError, match=r"adapter\.components"):
        recipe.load(path)
    path.write_text(head + '[export]\nlayouts = ["universal"]\n')
    with pytest.raises(RecipeError, match=r"export\.layouts.*dora"):
        recipe.load(path)
    path.write_text(head + '[export]\nlayouts = ["merged"]\n')
    assert isinstance(recipe.load(path), Loaded)
