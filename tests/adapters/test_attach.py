"""Attached, frozen, switched off, read out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bases import tiny_base
from support.bench import bench, settled
from support.photos import pictures
from torch import Tensor, nn
from torch.testing import assert_close

from finetune import families
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.adapters import attach as adapters
from finetune.adapters import lora
from finetune.adapters.change import canonical_name
from finetune.adapters.lora import delta
from finetune.errors import RecipeError
from finetune.families.base import Conditioning, Family, components, read
from finetune.files import layouts
from finetune.recipe import Adapter, FullWeights, LoRA

BOTH = ("denoiser", "text_encoder")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    made = {variant: str(tiny_base(folder / variant, variant)) for variant in ("sd15", "sd21")}
    return made | {"pocket": str(shipped.POCKET)}


def config(**settings: Any) -> LoRA:
    return LoRA.model_validate({"rank": 4, "components": BOTH, **settings})


def attach(family: Family, wanted: Adapter, seed: int = 0) -> adapters.Trainable:
    trained = {name: family.parts[name] for name in adapters.component_names(wanted, family.denoiser_name)}
    return adapters.attach(trained, family.presets, wanted, seed)


def grow(trainable: adapters.Trainable, size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameters in trainable.values():
            for p in parameters.values():
                p.copy_(torch.randn(p.shape, generator=generator) * size)


@torch.no_grad()
def output(family: Family) -> Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return family.predict(noise, torch.tensor([400]), Conditioning(read(family, ["a cup"])))


def skeleton(base: str) -> tuple[Any, dict[str, nn.Module]]:
    facts = families.detect(base)
    kind = families.family_class(facts.family)
    return kind, kind.on_meta(base, facts)


# -- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["sd15", "sd21", "pocket"])
def test_every_preset_finds_what_its_name_says(bases: dict[str, str], base: str) -> None:
    kind, modules = skeleton(bases[base])
    found = {name: adapters.targets(modules["unet"], kind.presets["unet"], name) for name in kind.presets["unet"]}
    attention, more, everything = (set(found[name]) for name in ("attention", "attention+ff", "all"))
    linear = {n for n, m in modules["unet"].named_modules() if isinstance(m, nn.Linear)}
    every = {n for n, m in modules["unet"].named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert attention == {n for n in linear if ".attn1." in n or ".attn2." in n}
    assert more - attention == {n for n in every if ".ff." in n or n.rpartition(".")[2] in ("proj_in", "proj_out")}
    assert every - everything == {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    assert attention < more < everything
    text = modules["text_encoder"]
    own = {name: adapters.targets(text, kind.presets["text_encoder"], name) for name in kind.presets["text_encoder"]}
    layers = {n for n, m in text.named_modules() if isinstance(m, nn.Linear)}
    assert set(own["attention"]) == {n for n in layers if ".self_attn." in n} and set(own["all"]) == layers
    assert any(n.endswith("out_proj") for n in own["attention"])


def names(found: Iterable[str]) -> set[str]:
    return {n.rpartition(".")[2] for n in found}


def test_patterns_are_endings_or_shell_patterns_over_whole_names(bases: dict[str, str]) -> None:
    kind, modules = skeleton(bases["sd15"])
    unet = modules["unet"]

    def chosen(*patterns: str) -> list[str]:
        return adapters.targets(unet, kind.presets["unet"], patterns)

    assert names(chosen("to_q")) == {"to_q"} and len(chosen("to_q")) == 32
    assert all(".attn2." in n for n in chosen("attn2.to_k")) and len(chosen("attn2.to_k")) == 16
    assert all(n.startswith("up_blocks.") for n in chosen("up_blocks.*.to_v"))
    assert set(chosen("to_q", "to_k")) == {*chosen("to_q"), *chosen("to_k")}
    assert not {n for n in chosen("to_k") if n.endswith("_to_k")}
    order = [n for n, _ in unet.named_modules()]
    assert chosen("to_v", "to_q") == sorted(chosen("to_v", "to_q"), key=order.index)


@pytest.mark.parametrize("written", [("to_q", "to_z"), "atention", ("to_z",), ("q",), ("mid_block",)])
def test_each_pattern_must_match_a_module(bases: dict[str, str], written: str | tuple[str, ...]) -> None:
    kind, modules = skeleton(bases["sd15"])
    with pytest.raises(RecipeError, match=r"match no module") as e:
        adapters.targets(modules["unet"], kind.presets["unet"], written)
    assert repr(written if isinstance(written, str) else written[-1]) in e.value.problem
    assert "attention+ff" in e.value.hint


def test_a_rank_pattern_must_match_a_target(bases: dict[str, str]) -> None:
    kind, modules = skeleton(bases["sd15"])
    adapters.check_ranks(modules, kind.presets, config(ranks={"to_q": 2, "q_proj": 8}))
    with pytest.raises(RecipeError, match=r"adapter.ranks: 'conv1'"):
        adapters.check_ranks(modules, kind.presets, config(ranks={"to_q": 2, "conv1": 8}))


def test_ranks_give_modules_their_own_rank_at_the_same_scale(bases: dict[str, str]) -> None:
    family = families.load(bases["sd15"])
    attach(family, config(alpha=2.0, ranks={"attn2.to_k": 8, "q_proj": 2}))
    for name, change in adapters.read_changes(components(family)).items():
        expected = 8 if name.endswith("attn2.to_k") else 2 if name.endswith("q_proj") else 4
        assert (change.rank, change.scale) == (expected, 0.5), name


# -- attach, detach, read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["sd15", "sd21"])
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_an_adapter_changes_nothing_at_first(bases: dict[str, str], base: str, targets: str) -> None:
    family = families.load(bases[base])
    before = output(family)
    trainable = attach(family, config(targets=targets, text_encoder_targets=targets))
    assert torch.equal(output(family), before)
    assert list(trainable) == ["unet", "text_encoder"]
    assert all("lora_" in n for parameters in trainable.values() for n in parameters)


def test_detached_gives_the_base_and_then_the_adapter_back(bases: dict[str, str]) -> None:
    family = families.load(bases["sd15"])
    before = output(family)
    trainable = attach(family, config())
    grow(trainable)
    adapted = output(family)
    asking = [p.requires_grad for c in components(family).values() for p in c.parameters()]
    with adapters.disabled(components(family)):
        assert torch.equal(output(family), before)
        assert [p.requires_grad for c in components(family).values() for p in c.parameters()] == asking
    assert torch.equal(output(family), adapted) and not torch.allclose(adapted, before, atol=1e-3)
    with pytest.raises(KeyboardInterrupt), adapters.disabled(components(family)):
        raise KeyboardInterrupt
    assert torch.equal(output(family), adapted)


def test_the_seed_decides_the_first_weights_and_nothing_else_does(bases: dict[str, str]) -> None:
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        family = families.load(bases["sd15"])
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        trainable = attach(family, config(), seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append({f"{c}.{n}": p.detach() for c, ps in trainable.items() for n, p in ps.items()})
    assert_close(found[0], found[1], rtol=0, atol=0)
    downs = [n for n in found[0] if "lora_A" in n]
    assert downs and not any(torch.equal(found[0][n], found[2][n]) for n in downs)


def test_a_components_first_weights_do_not_depend_on_the_others(bases: dict[str, str]) -> None:
    alone, beside = (attach(families.load(bases["sd15"]), config(components=c)) for c in (("denoiser",), BOTH))
    assert_close({**alone["unet"]}, {**beside["unet"]}, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_trained_weights_are_fp32_on_any_base_and_the_base_keeps_its_own(
    bases: dict[str, str], dtype: torch.dtype
) -> None:
    family = families.load(bases["sd15"], dtype)
    trainable = attach(family, config())
    trained = {id(p) for parameters in trainable.values() for p in parameters.values()}
    for component in components(family).values():
        for name, p in component.named_parameters():
            assert p.dtype == (torch.float32 if id(p) in trained else dtype), name
            assert p.requires_grad == (id(p) in trained), name


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_what_is_read_is_the_change_of_the_dense_weights(bases: dict[str, str], targets: str) -> None:
    """read() = W after - W before, where PEFT's own merge makes W after; convolutions too."""
    family = families.load(bases["sd15"])
    trainable = attach(family, config(targets=targets, alpha=3.0, ranks={"to_q": 2}))
    grow(trainable)
    read = adapters.read_changes(components(family))
    layers = dict(adapters._layers(components(family)))
    before = {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers.items()}
    assert before.keys() == read.keys()
    for component in components(family).values():
        for module in component.modules():
            if hasattr(module, "merge"):
                module.merge()
    for name, layer in layers.items():
        assert_close(delta(read[name]), layer.get_base_layer().weight - before[name], rtol=0, atol=1e-5)
        assert float(delta(read[name]).abs().max()) > 1e-2
    if targets == "all":
        assert any(change.down.ndim == 4 for change in read.values())


def test_what_is_read_is_a_copy(bases: dict[str, str]) -> None:
    family = families.load(bases["sd15"])
    trainable = attach(family, config())
    read = adapters.read_changes(components(family))
    kept = {n: change.down.clone() for n, change in read.items()}
    grow(trainable)
    assert all(torch.equal(read[n].down, kept[n]) for n in kept)


def test_names_read_are_those_of_files(bases: dict[str, str]) -> None:
    family = families.load(bases["sd15"])
    attach(family, config())
    found = set(adapters.read_changes(components(family)))
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj" in found
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0" in found
    assert canonical_name("unet", "conv_in") == "unet.conv_in"


def test_full_trains_all_of_the_chosen_component_in_fp32(bases: dict[str, str]) -> None:
    family = families.load(bases["sd15"], torch.bfloat16)
    trainable = attach(family, FullWeights(components=("denoiser",)))
    unet, text = components(family)["unet"], components(family)["text_encoder"]
    assert trainable["unet"].keys() == dict(unet.named_parameters()).keys() and list(trainable) == ["unet"]
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in unet.parameters())
    assert not any(p.requires_grad for p in text.parameters())
    assert adapters.read_changes(components(family)) == {}


def test_the_denoiser_comes_first(bases: dict[str, str]) -> None:
    wanted = config(components=("text_encoder", "denoiser"))
    assert adapters.component_names(wanted, "unet") == ["unet", "text_encoder"]


# -- going on from another adapter ------------------------------------------------------------------------------------


def test_training_starts_where_another_adapter_ended(tmp_path: Path) -> None:
    """Whatever its rank and scale: the change is the same in the model, and its ranks left over start at nothing."""
    base, data = tiny_base(tmp_path / "base", "sd15"), pictures(tmp_path / "data")
    first = bench(base, data, adapter__rank=2, adapter__alpha=1.0)
    first.grow()
    before = adapters.read_changes(components(first.family))
    weights.write_tensors(layouts.universal(before, torch.float32, "sd"), tmp_path / "a.safetensors", {})
    second = bench(base, data, adapter__rank=5, adapter__alpha=20.0, adapter__init_from=tmp_path / "a.safetensors")
    after = adapters.read_changes(components(second.family))
    assert after.keys() == before.keys()
    for name, change in before.items():
        assert_close(lora.delta(after[name]), lora.delta(change), rtol=1e-5, atol=1e-7)
        assert lora.norm(lora.subtract(after[name], change)) < 1e-5 * lora.norm(change)
    assert all(bool(g.any()) for g in second.gradients().values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter__rank": 1}, "has rank 2, and 1 here"),
        ({"adapter__targets": ("to_q",)}, "changes .* modules that are not trained, unet.*to_v first"),
        ({"base": "sd21"}, "made for another base|no such module"),
    ],
)
def test_an_adapter_that_does_not_fit_whole_is_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "sd15"), pictures(tmp_path / "data")
    first = bench(base, data, adapter__rank=2)
    first.grow()
    tensors = layouts.universal(adapters.read_changes(components(first.family)), torch.float32, "sd")
    weights.write_tensors(tensors, tmp_path / "a.safetensors", {})
    if "base" in changes:
        base, changes = tiny_base(tmp_path / "other", "sd21"), {}
    with pytest.raises(RecipeError, match=words):
        bench(base, data, adapter__init_from=tmp_path / "a.safetensors", **changes)


def test_a_start_that_is_not_there_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    base, data = tiny_base(tmp_path / "base", "sd15"), pictures(tmp_path / "data")
    with pytest.raises(RecipeError, match=r"adapter\.init_from: no .*missing\.safetensors"):
        settled(base, data, adapter__init_from=tmp_path / "missing.safetensors")
