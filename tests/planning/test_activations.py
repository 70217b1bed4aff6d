"""What is said of activations without computing any is what autograd keeps when it computes them."""

from pathlib import Path

import pytest
import torch
from families.cases import CASES
from safetensors.torch import save_file
from support.bases import Variant, tiny_base
from support.bench import bench, settled
from support.originals import clip_to_ldm, unet_to_ldm, vae_to_ldm
from support.photos import pictures

from finetune import families
from finetune import tensors as weights
from finetune.families import parts, single_file
from finetune.families.base import Conditioning, read
from finetune.planning import activations as memory
from finetune.planning import footprint
from finetune.training import begin

# what is guessed is no sum of shapes; Stable Diffusion 2 has another kind of attention than its family's usual one
VARIANTS = [case.variant for case in CASES if (case.usual or case.variant == "sd21") and not case.guessed_activations]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bytes_are_those_that_a_real_forward_pass_keeps(variant: Variant, batch: int, tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", variant), pictures(tmp_path / "data", [(256, 256), (256, 128)])
    b = bench(base, data, train__batch=batch, data__resolution=256, adapter__targets="attention+ff")
    told = memory.activation_bytes(b.plan)
    known = {p.untyped_storage()._cdata for m in b.family.parts.loaded().values() for p in m.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    channels, cells = b.plan.facts.channels, 256 // b.plan.facts.vae_scale_factor
    noisy, size = torch.randn(batch, channels, cells, cells), torch.ones(batch, 6)
    t = b.family.process.at(torch.full((batch,), 0.5))
    text = read(b.family, ["a cup"] * batch)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        b.family.predict(noisy, t, Conditioning(text, size))
    real = sum(one.untyped_storage().nbytes() for storage, one in kept.items() if storage not in known)
    assert told == pytest.approx(real, rel=0.15)


def test_recomputing_keeps_the_blocks_inputs_and_one_block(tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "flux"), pictures(tmp_path / "data", [(256, 256)])
    whole, less = (
        memory.activation_bytes(bench(base, data, data__resolution=256, train__gradient_checkpointing=on).plan)
        for on in (False, True)
    )
    assert whole and less and 0.2 * whole < less < 0.6 * whole  # four blocks


def test_a_prior_is_kept_beside_and_blocks_are_recomputed_one_at_a_time(tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "flux"), pictures(tmp_path / "data", [(256, 256)])
    changes = {"data__resolution": 256, "train__gradient_checkpointing": True, "data__trigger": "sks"}
    whole = memory.activation_bytes(bench(base, data, data__resolution=256).plan)
    plain, held = (
        memory.activation_bytes(bench(base, data, prior__mode=mode, **changes).plan)
        for mode in ("off", "own_prediction")
    )
    assert whole and plain and held and plain < held
    assert 0.2 < (2 * plain - held) / whole < 0.35  # what is inside of one of four blocks


def test_recomputing_loads_nothing_that_was_let_go(tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "sdxl"), pictures(tmp_path / "data")
    plan = settled(base, data, train__gradient_checkpointing=True)
    family, device = begin.open_base(plan), begin.open_machine("fp32")
    begin.attach_adapter(plan, family, device)
    assert family.parts.loaded().keys() == {"unet"}
    assert family.parts["unet"].is_gradient_checkpointing


def test_a_prior_is_kept_beside_the_training_loss(tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "sd15"), pictures(tmp_path / "data")
    plain, held = (
        memory.activation_bytes(bench(base, data, prior__mode=mode, data__trigger="sks").plan)
        for mode in ("off", "own_prediction")
    )
    assert plain and held == 2 * plain


def test_a_model_whose_shapes_depend_on_values_is_not_guessed(tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "zimage"), pictures(tmp_path / "data")
    assert memory.activation_bytes(bench(base, data).plan) is None


@pytest.mark.parametrize("one_file", [False, True])
def test_a_plan_and_its_memory_are_known_without_reading_a_weight(
    one_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(tmp_path / "base", "sd15")
    if one_file:
        monkeypatch.setattr(single_file, "config_folder", lambda _, folder=base: folder)
        whole, base = families.load(str(base)), tmp_path / "base.safetensors"
        file = {f"model.diffusion_model.{unet_to_ldm(k)}": v for k, v in whole.parts["unet"].state_dict().items()}
        file |= dict(vae_to_ldm(k, v) for k, v in whole.parts["vae"].state_dict().items())
        file |= clip_to_ldm(dict(whole.parts["text_encoder"].state_dict()))
        save_file({k: v.contiguous() for k, v in file.items()}, base)
    for module, reader in ((weights, "load_tensors"), (parts, "from_pretrained"), (parts, "fingerprint")):
        monkeypatch.setattr(module, reader, lambda *a, **_: pytest.fail(f"read weights: {a}"))
    plan = settled(base, pictures(tmp_path / "data"))
    assert memory.activation_bytes(plan) and all(row.parameters for row in footprint.component_footprints(plan))
