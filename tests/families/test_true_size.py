"""Every family at its published size, on the meta device: parameter counts, the modules of each preset, bytes."""

import dataclasses
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from families.cases import CASES, TRANSFORMERS, Case, small_base
from safetensors.torch import save_file
from support.bases import tiny_base
from support.bench import settled
from support.photos import pictures

from finetune import families, recipe
from finetune.adapters import attach as adapters
from finetune.adapters.change import target_shapes
from finetune.adapters.lora import Lora
from finetune.families import sizes
from finetune.families.base import BaseInfo
from finetune.files import layouts
from finetune.planning import footprint
from finetune.planning import plan as planning

PUBLISHED = {one.name: (case, one) for case in CASES if case.transformer for one in case.published}
QKV, OUT = ("to_q", "to_k", "to_v"), ("to_out.0",)
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FF = ("ff.net.0.proj", "ff.net.2")


def names(stem: str, blocks: int, *leaves: str) -> Iterator[str]:
    return (f"transformer.{stem}.{i}.{leaf}" for i, leaf in product(range(blocks), leaves))


def attn(*leaves: str, part: str = "attn") -> tuple[str, ...]:
    return tuple(f"{part}.{leaf}" for leaf in leaves)


def context(*leaves: str) -> tuple[str, ...]:
    return tuple(leaf.replace("ff.", "ff_context.") for leaf in leaves)


def golden_sd3(blocks: int, dual: int) -> set[str]:
    """The last block ends with the picture: its text has no queries that count, no output, no feed-forward."""
    found = {*names("transformer_blocks", blocks, *attn(*QKV, *OUT, "add_k_proj", "add_v_proj"), *FF)}
    found |= {*names("transformer_blocks", blocks - 1, *attn("add_q_proj", "to_add_out"), *context(*FF))}
    return found | {*names("transformer_blocks", dual, *attn(*QKV, *OUT, part="attn2"))}


def golden_flux() -> set[str]:
    double = names("transformer_blocks", 19, *attn(*QKV, *OUT, *ADDED), *FF, *context(*FF))
    return {*double, *names("single_transformer_blocks", 38, *attn(*QKV), "proj_mlp", "proj_out")}


def golden_zimage() -> set[str]:
    inside = (*attn(*QKV, *OUT, part="attention"), "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    return {*names("layers", 30, *inside), *names("noise_refiner", 2, *inside), *names("context_refiner", 2, *inside)}


def golden_qwen() -> set[str]:
    picture = ("img_mlp.net.0.proj", "img_mlp.net.2")
    words = ("txt_mlp.net.0.proj", "txt_mlp.net.2")
    found = {*names("transformer_blocks", 60, *attn(*QKV, *OUT, "add_k_proj", "add_v_proj"), *picture)}
    return found | {*names("transformer_blocks", 59, *attn("add_q_proj", "to_add_out"), *words)}


def golden_klein() -> set[str]:
    gated = ("ff.linear_in", "ff.linear_out")
    double = names("transformer_blocks", 5, *attn(*QKV, *OUT, *ADDED), *gated, *context(*gated))
    return {*double, *names("single_transformer_blocks", 20, *attn("to_qkv_mlp_proj", "to_out"))}


GOLDEN = {
    "sd3-medium": golden_sd3(24, 0),
    "sd3.5-medium": golden_sd3(24, 13),
    "sd3.5-large": golden_sd3(38, 0),
    "flux-dev": golden_flux(),
    "flux-schnell": golden_flux(),
    "z-image": golden_zimage(),
    "qwen-image": golden_qwen(),
    "flux2-klein-4b": golden_klein(),
}
"""modules of the preset attention+ff, written down by rule and not by the code"""


def skeleton(line: str) -> dict[str, torch.nn.Module]:
    facts = families.detect("pocket")  # a skeleton asks no fact
    return families.family_class(PUBLISHED[line][0].family).on_meta(str(PUBLISHED[line][1].configs), facts)


def test_the_keys_of_each_published_transformer_are_written_down() -> None:
    assert GOLDEN.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("line", PUBLISHED)
def test_the_denoiser_has_the_published_number_of_parameters(line: str) -> None:
    modules = skeleton(line)
    assert list(modules) == ["transformer"]
    assert sum(p.numel() for p in modules["transformer"].parameters()) == PUBLISHED[line][1].parameters


@pytest.mark.parametrize("line", PUBLISHED)
def test_files_hold_exactly_these_keys(line: str) -> None:
    family = families.family_class(PUBLISHED[line][0].family)
    modules = skeleton(line)
    chosen = adapters.targets(modules["transformer"], family.presets["transformer"], "attention+ff")
    assert {f"transformer.{name}" for name in chosen} == GOLDEN[line]
    one = Lora(torch.ones(1, 1), torch.ones(1, 1), 0.5)
    keys = layouts.universal({f"transformer.{n}": one for n in chosen}, torch.float32, family.name).keys()
    assert keys == {f"{name}.{part}.weight" for name in GOLDEN[line] for part in ("lora_A", "lora_B")}


@pytest.mark.parametrize("case", TRANSFORMERS, ids=[case.published[0].name for case in TRANSFORMERS])
def test_what_is_found_in_a_base_of_true_size_is_what_a_small_one_says(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts come from configs alone; weight files are only looked at for being whole."""
    monkeypatch.setattr(sizes, "check_config", lambda *_: None)  # the weights are the small base's
    small = small_base(case, tmp_path / "tiny")
    for part in ("transformer", "vae", "scheduler"):
        for file in (case.published[0].configs / part).iterdir():
            (small / part / file.name).write_bytes(file.read_bytes())
    facts = families.detect(str(small))
    assert facts.resolution == 1024 and facts.stride == 16 and facts.prediction == "flow" and facts.zero_snr
    assert facts.guided == (case.name == "dev") and not facts.distilled


@pytest.mark.parametrize("line", ["flux-dev", "qwen-image"])
def test_the_plan_counts_the_bytes_of_true_size_exactly(line: str, tmp_path: Path) -> None:
    tiny = small_base(PUBLISHED[line][0], tmp_path / "tiny")
    plan = settled(tiny, pictures(tmp_path / "data"), adapter__targets="attention+ff", adapter__rank=16,
                   train__precision="bf16")  # fmt: skip
    real = _pretend(plan, line)
    [row] = footprint.component_footprints(real)
    shapes = target_shapes(skeleton(line))
    adapter = sum(16 * (shapes[name][0] + shapes[name][1]) for name in GOLDEN[line])
    assert (row.name, row.parameters, row.trainable) == ("transformer", PUBLISHED[line][1].parameters, adapter)
    assert row.weight_bytes == 2 * PUBLISHED[line][1].parameters + 4 * adapter
    assert row.gradient_bytes == 4 * adapter and row.optimizer_bytes >= 8 * adapter
    assert row.modules == len(GOLDEN[line])


def _pretend(plan: planning.Plan, line: str) -> planning.Plan:
    facts: BaseInfo = plan.facts
    assert facts.family == PUBLISHED[line][0].family
    return dataclasses.replace(plan, recipe=recipe.replace(plan.recipe, base=str(PUBLISHED[line][1].configs)))


def test_weights_split_into_shards_are_found_and_looked_at_one_by_one(tmp_path: Path) -> None:
    """As the hub has large bases."""
    base = tiny_base(tmp_path / "flux", "flux")
    before = families.load(str(base)).fingerprint("transformer")
    from diffusers import FluxTransformer2DModel

    whole = FluxTransformer2DModel.from_pretrained(base, subfolder="transformer")
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    whole.save_pretrained(base / "transformer", max_shard_size="100KB")
    shards = sorted((base / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 2 and families.load(str(base)).fingerprint("transformer") == before
    save_file({"x": torch.zeros(1)}, shards[1])
    shards[1].write_bytes(shards[1].read_bytes()[:40])
    with pytest.raises(families.BaseError, match=shards[1].name):
        families.detect(str(base))
