"""Adapters that other programs wrote, for transformers: each spelling is the same change, or is refused by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from families.cases import TRANSFORMERS, small_base
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from finetune import families
from finetune.adapters import attach as adapters
from finetune.adapters.change import AdapterState, target_shapes
from finetune.adapters.lora import Lora, delta
from finetune.files import layouts
from finetune.proof import verify
from finetune.proof.export import base_sites

RANK, ALPHA = 4, 2.0


class Base:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.family = families.family_class(families.detect(self.path).family)
        self.places = base_sites(self.path)
        chosen = adapters.targets(self.on_meta(), self.family.presets["transformer"], "attention+ff")
        self.modules = {
            f"transformer.{n}": random_lora(self.places[f"transformer.{n}"], i) for i, n in enumerate(chosen)
        }

    def on_meta(self) -> torch.nn.Module:
        return self.family.on_meta(self.path, families.detect(self.path))["transformer"]

    def read(self, tensors: Mapping[str, Tensor], folder: Path) -> layouts.AdapterFile:
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / "other.safetensors")
        return layouts.read_adapter(folder / "other.safetensors", self.places, self.family.name)


def random_lora(shape: tuple[int, ...], seed: int) -> Lora:
    chance = torch.Generator().manual_seed(seed)
    down, up = torch.randn(RANK, shape[1], generator=chance), torch.randn(shape[0], RANK, generator=chance)
    return Lora(down, up, ALPHA / RANK)


@pytest.fixture(scope="module", params=TRANSFORMERS, ids=[case.name for case in TRANSFORMERS])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(small_base(request.param, tmp_path_factory.mktemp(request.param.variant) / "base"))


def split(name: str) -> str:
    return name.partition(".")[2]


def with_alpha(key: str, module: Lora, down: str = "lora_down", up: str = "lora_up") -> dict[str, Tensor]:
    alpha = torch.tensor(module.scale * module.rank)
    return {f"{key}.{down}.weight": module.down, f"{key}.{up}.weight": module.up, f"{key}.alpha": alpha}


def folded(key: str, module: Lora) -> dict[str, Tensor]:
    return {f"{key}.lora_A.weight": module.down, f"{key}.lora_B.weight": module.up * module.scale}


Writer = Callable[[str, Lora], dict[str, Tensor]]
SPELLINGS: dict[str, Writer] = {
    "diffusers, PEFT": lambda n, m: folded(n, m),
    "ai-toolkit": lambda n, m: folded(f"diffusion_model.{split(n)}", m),
    "plain PEFT": lambda n, m: folded(f"base_model.model.{split(n)}", m),
    "bare": lambda n, m: folded(split(n), m),
    "OneTrainer": lambda n, m: with_alpha("lora_transformer_" + split(n).replace(".", "_"), m),
    "musubi": lambda n, m: with_alpha("lora_unet_" + split(n).replace(".", "_"), m),
    "SimpleTuner, LyCORIS": lambda n, m: with_alpha("lycoris_" + split(n).replace(".", "_"), m),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_the_same_change(base: Base, spelling: str, tmp_path: Path) -> None:
    tensors = {k: v for name, m in base.modules.items() for k, v in SPELLINGS[spelling](name, m).items()}
    found = base.read(tensors, tmp_path)
    assert not found.problems and not found.unused
    same(found.modules, base.modules)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_has_no_place_is_named_and_never_passed_over(base: Base, spelling: str, tmp_path: Path) -> None:
    tensors = {k: v for name, m in base.modules.items() for k, v in SPELLINGS[spelling](name, m).items()}
    stranger = SPELLINGS[spelling]("transformer.transformer_blocks.77.attn.to_q", next(iter(base.modules.values())))
    found = base.read(tensors | stranger, tmp_path)
    assert len(found.problems) == 1 and "77" in found.problems[0] and "no such module" in found.problems[0]
    assert all(key in found.unused for key in stranger)


def test_a_strangers_file_is_verified_in_its_base(base: Base, tmp_path: Path) -> None:
    small = {n: m._replace(up=m.up * 0.02) for n, m in base.modules.items()}
    tensors = {k: v for name, m in small.items() for k, v in SPELLINGS["OneTrainer"](name, m).items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "other.safetensors")
    report = verify.verify(tmp_path / "other.safetensors", base.path)
    assert report.ok and report.hit == len(small), report.problems
    assert set(report.alphas) == {f"{ALPHA:g}"}


# -- modules that the original code has in one piece ------------------------------------------------------------------


def fuse(base: Base, dotted: bool) -> tuple[dict[str, Tensor], AdapterState]:
    """One change for each module of the original code: its pieces share the way down. And what it means in ours."""
    pieces: dict[str, list[tuple[int, str]]] = {}
    for name in base.modules:
        original = base.family.original(name)
        assert original is not None, name
        pieces.setdefault(original.name, []).append((original.piece, name))
    tensors: dict[str, Tensor] = {}
    expected: AdapterState = {}
    for number, (written, parts) in enumerate(pieces.items()):
        inside = [name for _, name in sorted(parts)]
        rows = [base.places[name][0] for name in inside]
        whole = random_lora((sum(rows), base.places[inside[0]][1]), number)
        key = f"diffusion_model.{written}" if dotted else "lora_unet_" + written.replace(".", "_")
        tensors |= folded(key, whole) if dotted else with_alpha(key, whole)
        for name, up in zip(inside, whole.up.split(rows), strict=True):
            expected[name] = whole._replace(up=up)
    return tensors, expected


FUSED = [case for case in TRANSFORMERS if case.fused]


@pytest.fixture(scope="module", params=FUSED, ids=[case.name for case in FUSED])
def fused_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    base = Base(small_base(request.param, tmp_path_factory.mktemp(request.param.variant) / "base"))
    # in the last block of SD 3.5 only keys and values of the text are there to be trained, and files hold all three
    base.modules = {n: m for n, m in base.modules.items() if ".2.attn.add_" not in n}
    return base


@pytest.mark.parametrize("dotted", [False, True], ids=["kohya", "original names"])
def test_fused_modules_are_taken_apart_exactly(fused_base: Base, dotted: bool, tmp_path: Path) -> None:
    tensors, expected = fuse(fused_base, dotted)
    found = fused_base.read(tensors, tmp_path)
    assert not found.problems
    same(found.modules, expected)


def test_a_fused_module_of_other_rows_is_refused(fused_base: Base, tmp_path: Path) -> None:
    tensors, _ = fuse(fused_base, dotted=False)
    key = next(k for k in tensors if k.endswith("qkv.lora_up.weight"))
    found = fused_base.read(tensors | {key: tensors[key][:-1]}, tmp_path)
    assert any("rows, where the base has" in problem for problem in found.problems)


@pytest.mark.whole  # their code asks for the true width
def test_the_map_of_original_names_is_diffusers_converters() -> None:
    """Every weight of a small FLUX and SD 3.5, written in the original names by our map, comes back by their code."""
    flux = filled(FluxTransformer2DModel, num_layers=2, num_single_layers=2, attention_head_dim=128,
                  num_attention_heads=24, joint_attention_dim=16, pooled_projection_dim=16,
                  guidance_embeds=True)  # fmt: skip
    check(flux, "flux", convert_flux_transformer_checkpoint_to_diffusers)
    sd3 = SD3Transformer2DModel(sample_size=16, num_layers=3, attention_head_dim=16, num_attention_heads=2,
                                joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=16,
                                pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=(0, 1),
                                in_channels=16, out_channels=16)  # fmt: skip
    check(sd3, "sd3", convert_sd3_transformer_checkpoint_to_diffusers)


def test_the_map_of_flux2s_names_is_too() -> None:
    flux2 = Flux2Transformer2DModel(num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
                                    joint_attention_dim=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
                                    timestep_guidance_channels=16)  # fmt: skip
    check(flux2, "flux2", convert_flux2_transformer_checkpoint_to_diffusers)


def filled(kind: Callable[..., Any], **sizes: object) -> Any:
    """A model in bf16 in which no two weights are alike; drawing a billion random numbers would take seconds."""
    with torch.device("meta"):
        model = kind(**sizes)
    model.to(torch.bfloat16).to_empty(device="cpu")
    numbers = torch.arange(max(p.numel() for p in model.parameters()) + 251, dtype=torch.int32) % 251
    for i, parameter in enumerate(model.parameters()):
        parameter.data.copy_(numbers[i % 251 : i % 251 + parameter.numel()].view_as(parameter))
    return model


def check(model: Any, family: str, convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    known = families.family_class(family)
    weights = {n: t for n, t in model.state_dict().items() if n.endswith(".weight")}
    mapped, others = {}, []
    for name, tensor in weights.items():
        original = known.original(f"transformer.{name.removesuffix('.weight')}")
        if original is None:
            others.append(name)
        else:
            mapped.setdefault(original.name, []).append((original.piece, name, tensor))
    written = {f"{key}.weight": torch.cat([t for _, _, t in sorted(found, key=lambda f: f[0])])
               for key, found in mapped.items()}  # fmt: skip
    back = convert(Missing(written))
    for found in mapped.values():
        for _, name, tensor in found:
            assert torch.equal(back[name], tensor), name
    assert all(any(word in name for word in ("norm", "pos_embed", "embed", "context_embedder")) for name in others), (
        others
    )


class Missing(dict[str, Any]):
    """Says of a key that is not there that it is a tensor of nothing: norms and biases are not our business."""

    def __init__(self, real: Mapping[str, Tensor]) -> None:
        blocks = {f"{name.rpartition('.')[0]}.bias": torch.zeros(len(t)) for name, t in real.items()}
        super().__init__({**real, **blocks})

    def __missing__(self, key: str) -> Tensor:
        return torch.zeros(64, 64)

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key) if key in self else torch.zeros(64, 64)


def same(found: AdapterState, expected: AdapterState) -> None:
    assert found.keys() == expected.keys()
    for name, module in expected.items():
        assert_close(delta(found[name]), delta(module), rtol=1e-5, atol=1e-6)


def test_the_names_of_places_and_modules_agree(base: Base) -> None:
    assert base.modules.keys() <= target_shapes({"transformer": base.on_meta()}).keys()
