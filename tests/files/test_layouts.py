"""Every reader of an adapter file applies the same change: the dense one, computed in float64 from what was trained."""

import copy
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import StableDiffusionPipeline
from packaging.version import Version
from safetensors.torch import load_file, save_file
from support.adapters import Deltas, dense, random_lora
from support.bases import tiny_base
from support.kohya import kohya_file
from torch import Tensor, nn

from finetune import tensors as weights
from finetune.adapters.change import AdapterState, canonical_name, live_name, target_shapes
from finetune.adapters.lora import Lora, delta, norm
from finetune.errors import BaseError, VerifyError
from finetune.families.sd import StableDiffusion
from finetune.files import layouts
from finetune.files import read as reading

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23
)


class Base(NamedTuple):
    variant: str
    path: Path
    pipeline: StableDiffusionPipeline
    places: dict[str, tuple[int, ...]]

    def fresh(self) -> StableDiffusionPipeline:
        return copy.deepcopy(self.pipeline)


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    path = tiny_base(tmp_path_factory.mktemp("base") / request.param, request.param)
    pipeline = StableDiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return Base(
        request.param, path, pipeline, target_shapes({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    )


# a third of the attention modules: PEFT's injection takes the time of these tests
ATTENTION = r"(unet\.(down_blocks\.1|mid|up_blocks\.3)|text).*(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)"
CASES: dict[str, tuple[str, Callable[[int], tuple[int, float]]]] = {
    # module pattern, and nth module -> (rank, scale)
    "alpha is not the rank": (ATTENTION, lambda n: (4, 0.5)),
    "mixed ranks and alphas": (ATTENTION, lambda n: ((2, 4, 5)[n % 3], (0.5, 1.0, 1.7)[n % 3])),
    "every linear layer and convolution": (r".*(?<!embedding)", lambda n: ((3, 6)[n % 2], (2.0, 0.3)[n % 2])),
    "rslora": (ATTENTION, lambda n: (4, 3 / math.sqrt(4))),
}
COMPONENTS = {"unet": r"unet\..*", "text encoder": r"text_encoder\..*", "both": r".*"}
GRID = [pair for pair in itertools.product(COMPONENTS, CASES) if pair != ("unet", "every linear layer and convolution")]


def trained(places: dict[str, tuple[int, ...]], components: str, case: str, seed: int = 0) -> AdapterState:
    pattern, shape_of = CASES[case]
    names = [n for n in places if re.fullmatch(COMPONENTS[components], n) and re.fullmatch(pattern, n)]
    return {name: random_lora(places[name], *shape_of(n), seed + n) for n, name in enumerate(names)}


def changes(before: nn.Module, after: nn.Module, component: str) -> Deltas:
    """All weights that differ; a reader that touches something else shows here too."""
    old = before.state_dict()
    moved = {k: v.double() - old[k].double() for k, v in after.state_dict().items() if not torch.equal(v, old[k])}
    return {canonical_name(component, k.removesuffix(".weight")): v for k, v in moved.items()}


# -- the readers ------------------------------------------------------------------------------------------------------


def stock_diffusers(base: Base, file: Path) -> Deltas:
    pipeline = base.fresh()
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    loaded = [c for c in ("unet", "text_encoder") if getattr(getattr(pipeline, c), "peft_config", None)]
    pipeline.fuse_lora(components=loaded)
    pipeline.unload_lora_weights()
    return changes(base.pipeline.unet, pipeline.unet, "unet") | changes(
        base.pipeline.text_encoder, pipeline.text_encoder, "text_encoder"
    )


def peft(base: Base, folder: Path) -> Deltas:
    from peft import PeftModel

    found: Deltas = {}
    for component in (p.name for p in folder.iterdir()):
        before = getattr(base.pipeline, component)
        merged = PeftModel.from_pretrained(copy.deepcopy(before), folder / component).merge_and_unload()
        found |= changes(before, merged, component)
    return found


def lycoris(base: Base, file: Path) -> Deltas:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # triton and the like, at import
        from lycoris import LycorisNetwork, create_lycoris_from_weights
    pipeline, tensors = base.fresh(), load_file(file)
    found: Deltas = {}
    for component in ("unet", "text_encoder"):
        module, prefix = getattr(pipeline, component), kohya_prefix(base, component)
        LycorisNetwork.LORA_PREFIX = prefix
        network, _ = create_lycoris_from_weights(1.0, "", module, weights_sd=dict(tensors))
        network.merge_to(1.0)
        found |= changes(getattr(base.pipeline, component), module, component)
    return found


def kohya_prefix(base: Base, component: str) -> str:
    """Before the module's path in memory, where transformers 5.6 dropped the level `text_model`."""
    if component == "unet":
        return "lora_unet"
    has_level = "text_model" in dict(base.pipeline.text_encoder.named_modules())
    return "lora_te" if has_level else "lora_te_text_model"


def plain_kohya(base: Base, file: Path) -> Deltas:
    """What the format means, in a few lines: alpha / rank times up @ down, at the module whose path has _ for dots."""
    tensors = load_file(file)
    found: Deltas = {}
    for component in ("unet", "text_encoder"):
        prefix = kohya_prefix(base, component)
        for path, module in getattr(base.pipeline, component).named_modules():
            key = f"{prefix}_{path}".replace(".", "_")
            if f"{key}.lora_down.weight" in tensors:
                down = tensors.pop(f"{key}.lora_down.weight").double()
                up = tensors.pop(f"{key}.lora_up.weight").double()
                scale = tensors.pop(f"{key}.alpha").item() / len(down)
                product = scale * up.flatten(1) @ down.flatten(1)
                found[canonical_name(component, path)] = product.reshape(module.weight.shape)
    assert not tensors
    return {name: change for name, change in found.items() if change.any()}


def assert_same(found: Deltas, reference: Deltas, tolerance: float = 1e-5) -> None:
    assert found.keys() == reference.keys()
    errors = {n: float((found[n] - reference[n]).norm() / reference[n].norm()) for n in reference}
    worst = max(errors, key=lambda n: errors[n])
    assert errors[worst] < tolerance, (worst, errors[worst])


# -- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("components", "case"), GRID)
def test_every_reader_of_the_universal_file_applies_what_was_trained(
    base: Base, tmp_path: Path, components: str, case: str
) -> None:
    modules = trained(base.places, components, case)
    file = tmp_path / "a.safetensors"
    weights.write_tensors(layouts.universal(modules, torch.float32, "sd"), file, {})
    for reader in (plain_kohya, lycoris, stock_diffusers):
        wanted = dense(modules)
        if reader is stock_diffusers and Version(version("diffusers")) < Version("0.42"):
            # 0.36 drops these without a word; no preset trains them, and verify fails there on a file that has them
            wanted = {n: d for n, d in wanted.items() if not n.startswith(("unet.conv_", "unet.time_embedding."))}
        assert_same(reader(base, file), wanted)


@pytest.mark.parametrize(("components", "case"), GRID)
def test_the_peft_directory_is_lossless(base: Base, tmp_path: Path, components: str, case: str) -> None:
    modules = trained(base.places, components, case)
    layouts.write_peft(modules, tmp_path, {})
    assert_same(peft(base, tmp_path), dense(modules))
    again = layouts.read_adapter(tmp_path, base.places)
    assert (again.problems, again.layout, again.modules.keys()) == ((), "peft", modules.keys())
    for name, lora in modules.items():
        assert torch.equal(again.modules[name].down, lora.down) and torch.equal(again.modules[name].up, lora.up)
        assert again.modules[name].scale == pytest.approx(lora.scale, rel=1e-12)


@pytest.mark.parametrize(("components", "case"), GRID[2::2])
def test_stock_diffusers_reads_the_diffusers_file(base: Base, tmp_path: Path, components: str, case: str) -> None:
    modules = trained(base.places, components, case)
    file = tmp_path / "a.safetensors"
    weights.write_tensors(layouts.diffusers(modules, torch.float32), file, {})
    assert_same(stock_diffusers(base, file), dense(modules))


@pytest.mark.parametrize("targets", ["q_proj|v_proj", "q_proj|v_proj|fc1|fc2", "fc1", "out_proj", "fc2"])
def test_text_encoder_targets_that_break_diffusers_are_completed(base: Base, tmp_path: Path, targets: str) -> None:
    names = [n for n in base.places if re.fullmatch(rf"text_encoder\..*layers\.1\..*({targets})", n)]
    modules = {n: random_lora(base.places[n], 3, 0.5, i) for i, n in enumerate(names)}
    for tensors in (layouts.universal(modules, torch.float32, "sd"), layouts.diffusers(modules, torch.float32)):
        weights.write_tensors(tensors, tmp_path / "a.safetensors", {})
        assert_same(stock_diffusers(base, tmp_path / "a.safetensors"), dense(modules))


def test_half_precision_files_stay_within_their_rounding(base: Base, tmp_path: Path) -> None:
    modules = trained(base.places, "both", "mixed ranks and alphas")
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        weights.write_tensors(layouts.universal(modules, dtype, "sd"), tmp_path / "a.safetensors", {})
        assert_same(plain_kohya(base, tmp_path / "a.safetensors"), dense(modules), tolerance)
        alphas = [t for k, t in load_file(tmp_path / "a.safetensors").items() if k.endswith(".alpha")]
        assert all(alpha.dtype == torch.float32 for alpha in alphas)


def test_an_alpha_of_257_survives_bfloat16() -> None:
    lora = Lora(torch.ones(257, 4), torch.ones(4, 257), 1.0)
    assert layouts.universal({"unet.x.to_q": lora}, torch.bfloat16, "sd")["lora_unet_x_to_q.alpha"].item() == 257


def test_a_change_too_large_for_float16_is_refused_by_name() -> None:
    lora = Lora(torch.ones(1, 4), torch.full((4, 1), 1e5), 1.0)
    with pytest.raises(VerifyError, match=r"unet\.x\.to_q.*float16"):
        layouts.universal({"unet.x.to_q": lora}, torch.float16, "sd")


# -- what is written --------------------------------------------------------------------------------------------------

GOLDEN = {
    "sd15": [
        "unet.down_blocks.0.attentions.0.proj_in",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
        "unet.up_blocks.0.upsamplers.0.conv",
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.1.mlp.fc1",
    ],
    "sd21": [
        "unet.conv_in",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "unet.mid_block.resnets.1.conv2",
        "unet.mid_block.resnets.1.time_emb_proj",
        "unet.time_embedding.linear_1",
        "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
    ],
}
GOLDEN_KEYS = {
    "sd15": [
        "lora_te_text_model_encoder_layers_1_mlp_fc1",
        "lora_te_text_model_encoder_layers_1_self_attn_k_proj",
        "lora_te_text_model_encoder_layers_1_self_attn_out_proj",
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_1_self_attn_v_proj",
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_0_upsamplers_0_conv",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0",
    ],
    "sd21": [
        "lora_te_text_model_encoder_layers_0_self_attn_k_proj",
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_0_self_attn_v_proj",
        "lora_unet_conv_in",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_unet_mid_block_resnets_1_conv2",
        "lora_unet_mid_block_resnets_1_time_emb_proj",
        "lora_unet_time_embedding_linear_1",
    ],
}


def test_the_universal_keys_are_these(base: Base) -> None:
    modules = {n: random_lora(base.places[n], 2 + i, 0.5, i) for i, n in enumerate(GOLDEN[base.variant])}
    tensors = layouts.universal(modules, torch.float16, "sd")
    suffixes = ("alpha", "lora_down.weight", "lora_up.weight")
    assert sorted(tensors) == sorted(f"{key}.{s}" for key in GOLDEN_KEYS[base.variant] for s in suffixes)
    rank = 1 + len(modules)
    assert {t.item() for k, t in tensors.items() if k.endswith("alpha")} == {rank}
    assert {len(t) for k, t in tensors.items() if k.endswith("down.weight")} == {rank}


def test_names_go_from_memory_to_file_and_back(base: Base) -> None:
    for component in ("unet", "text_encoder"):
        paths = {path for path, _ in getattr(base.pipeline, component).named_modules()}
        for name in (n for n in base.places if n.startswith(f"{component}.")):
            assert live_name(name, paths) in paths
            assert canonical_name(component, live_name(name, paths)) == name
    assert len({StableDiffusion.kohya_name(n) for n in base.places}) == len(base.places)


def test_the_norm_is_that_of_the_dense_change(base: Base) -> None:
    for lora in trained(base.places, "both", "every linear layer and convolution").values():
        assert norm(lora) == pytest.approx(float(delta(lora).double().norm()), rel=1e-5)


# -- reading ----------------------------------------------------------------------------------------------------------


def diffusers_old(modules: AdapterState) -> dict[str, Tensor]:
    """Attention processors, as diffusers 0.15 wrote them; scale 1."""
    old = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
    tensors = {}
    for name, lora in modules.items():
        head, _, last = name.removesuffix(".0").rpartition(".")
        key = f"{head}.{old[last]}" if last in old else f"{head}.processor.{last}_lora"
        tensors |= {f"{key}.down.weight": lora.down, f"{key}.up.weight": lora.up * lora.scale}
    return tensors


def diffusers_dotted(down: str, up: str) -> Callable[[AdapterState], dict[str, Tensor]]:
    def made(modules: AdapterState) -> dict[str, Tensor]:
        tensors = {}
        for name, lora in modules.items():
            tensors |= {f"{name}.{down}": lora.down, f"{name}.{up}": lora.up * lora.scale}
        return tensors

    return made


@pytest.mark.parametrize(
    ("made", "layout"),
    [
        (kohya_file, "kohya"),
        (lambda m: kohya_file(m, "lora_te1_"), "kohya"),
        (diffusers_old, "diffusers-old"),
        (diffusers_dotted("lora.down.weight", "lora.up.weight"), "diffusers-old"),
        (diffusers_dotted("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"), "diffusers-old"),
        (diffusers_dotted("lora_A.weight", "lora_B.weight"), "diffusers"),
    ],
)
def test_strangers_files_are_read_exactly(
    base: Base, tmp_path: Path, made: Callable[[AdapterState], dict[str, Tensor]], layout: str
) -> None:
    modules = trained(base.places, "both", "mixed ranks and alphas")
    save_file(made(modules), tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", base.places)
    assert (found.layout, found.problems, found.unused) == (layout, (), ())
    assert_same({n: delta(m).double() for n, m in found.modules.items()}, dense(modules))


def test_lora_adapter_metadata_is_honoured(base: Base, tmp_path: Path) -> None:
    """r / alpha patterns, rsLoRA, and names without text_model, as diffusers 0.42 under transformers 5 saves them."""
    modules = trained(base.places, "both", "rslora")
    tensors = {}
    for name, lora in modules.items():
        key = name.replace("text_model.", "")
        tensors |= {f"{key}.lora_A.weight": lora.down, f"{key}.lora_B.weight": lora.up}
    odd = next(n for n in modules if n.startswith("text_encoder.")).replace("text_encoder.text_model.", "")
    flat = {"unet.r": 4, "unet.lora_alpha": 3, "unet.use_rslora": True}
    flat |= {"text_encoder.r": 4, "text_encoder.lora_alpha": 2, "text_encoder.alpha_pattern": {odd: 8}}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(flat)})
    found = layouts.read_adapter(tmp_path / "a.safetensors", base.places)
    assert found.problems == ()
    scales = {n: m.scale for n, m in found.modules.items()}
    assert scales.pop(f"text_encoder.text_model.{odd}") == 2
    assert all(s == (1.5 if n.startswith("unet") else 0.5) for n, s in scales.items())


def test_a_strangers_peft_directory_is_read_exactly(base: Base, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["to_q", "to_v", "conv1"],
        rank_pattern={"attn2.to_q": 2}, alpha_pattern={"mid_block.*.to_v": 1}, init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(base.fresh().unet, config)
    model.save_pretrained(tmp_path)
    found = layouts.read_adapter(tmp_path, base.places)
    assert found.problems == ()
    merged = changes(base.pipeline.unet, model.merge_and_unload(), "unet")
    assert_same({n: delta(m).double() for n, m in found.modules.items()}, merged)


def test_a_tucker_convolution_is_read_exactly(tmp_path: Path) -> None:
    down, mid, up = torch.randn(3, 8, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(5, 3, 1, 1)
    key = "lora_unet_conv_in"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid, f"{key}.lora_up.weight": up}
    save_file(tensors | {f"{key}.alpha": torch.tensor(1.5)}, tmp_path / "a.safetensors")
    found = layouts.read_adapter(tmp_path / "a.safetensors", ["unet.conv_in"]).modules["unet.conv_in"]
    x = torch.randn(1, 8, 6, 6)
    steps = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), mid, padding=1), up) * 0.5
    torch.testing.assert_close(nn.functional.conv2d(x, delta(found), padding=1), steps, rtol=1e-4, atol=1e-4)


def test_the_order_of_keys_changes_nothing(base: Base, tmp_path: Path) -> None:
    tensors = kohya_file(trained(base.places, "both", "mixed ranks and alphas"))
    orders = [sorted(tensors), sorted(tensors, reverse=True), sorted(tensors, key=lambda k: hash((k, 1)))]
    found = [reading._parse({k: tensors[k] for k in order}, {}, base.places, "sd", lambda _: None) for order in orders]
    for other in found[1:]:
        assert other._replace(modules={}) == found[0]._replace(modules={})
        assert all(torch.equal(delta(other.modules[n]), delta(m)) for n, m in found[0].modules.items())


def test_what_is_no_plain_lora_is_named(base: Base, tmp_path: Path) -> None:
    tensors = kohya_file(trained(base.places, "unet", "alpha is not the rank"))
    next(k for k in tensors if k.endswith(".alpha")).removesuffix(".alpha")
    foreign = {
        "lora_unet_x.hada_w1_a": (torch.ones(2, 2), "LoHa"),
        "lora_unet_x.lokr_w1": (torch.ones(2, 2), "LoKr"),
        "bundle_emb.x.string_to_param": (torch.ones(2), "not a LoRA tensor"),
        "lora_unet_mid_block_nowhere.lora_down.weight": (torch.ones(2, 2), "no such module"),
    }
    for name, (tensor, said) in foreign.items():
        save_file(tensors | {name: tensor}, tmp_path / "a.safetensors")
        found = layouts.read_adapter(tmp_path / "a.safetensors", base.places)
        assert len(found.problems) == 1 and said in found.problems[0] and name in found.unused


def test_a_peft_directory_of_another_method_is_refused_by_name(base: Base, tmp_path: Path) -> None:
    layouts.write_peft(trained(base.places, "unet", "rslora"), tmp_path, {})
    file = tmp_path / "unet" / "adapter_config.json"
    written = json.loads(file.read_text())
    for change, said in (({"peft_type": "LOHA"}, "LOHA"), ({"r": "four"}, "'four'")):
        file.write_text(json.dumps(written | change))
        with pytest.raises(BaseError, match=said):
            layouts.read_adapter(tmp_path, base.places)


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no adapter in"):
        layouts.read_adapter(tmp_path)
