"""pytest tests/families/test_single_file.py: single-file Stable Diffusion, on small models with the true structure."""

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from support.bases import released_is_freed
from support.originals import clip_to_ldm, open_clip_to_ldm, unet_to_ldm, vae_to_ldm
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from finetune import families
from finetune import tensors as weights
from finetune.errors import BaseError
from finetune.families import single_file
from finetune.families.base import Family
from finetune.families.sd import StableDiffusion
from finetune.families.single_file import Checkpoint, SingleFile, Variant, identify, load_tokenizer, open_checkpoint

VARIANTS: tuple[Variant, ...] = ("sd1", "sd2")
ONE_LINE = pytest.mark.parametrize("small", ["sd1"], indirect=True)
CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
BLOCKS = [32, 64, 96, 96]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach a network fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"tried the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Parts(NamedTuple):
    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module


def load_checkpoint(opened: Checkpoint, dtype: torch.dtype, configs: Path | None = None) -> Parts:
    """All parts of a file, one after the other."""
    source = SingleFile(opened.path, configs)
    return Parts(*(source.load(name, part, dtype) for name, part in StableDiffusion.PARTS.items()))


class Small(NamedTuple):
    """A small model with a line's true blocks, and its one-file form."""

    variant: Variant
    configs: Path
    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    file: dict[str, Tensor]


@pytest.fixture(scope="module", params=VARIANTS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "configs")


def build(variant: Variant, configs: Path) -> Small:
    """The published configs with few channels, random weights, and the file the original code would have written."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shutil.copytree(single_file.config_folder(variant), configs)
    heads = {"attention_head_dim": [1, 2, 3, 3]} if variant == "sd2" else {}
    unet_config = edit(configs / "unet", block_out_channels=BLOCKS, cross_attention_dim=32, **heads)
    vae_config = edit(configs / "vae", block_out_channels=[32, 32, 64, 64])
    text_config = edit(configs / "text_encoder", hidden_size=32, intermediate_size=64, num_attention_heads=4)
    unet = UNet2DConditionModel.from_config(unet_config).eval()
    vae = AutoencoderKL.from_config(vae_config).eval()
    text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(text_config)).eval()
    shake(unet, vae, text_encoder)
    file = {f"model.diffusion_model.{unet_to_ldm(k)}": v for k, v in unet.state_dict().items()}
    file |= dict(vae_to_ldm(k, v) for k, v in vae.state_dict().items())
    plain = {k.removeprefix("text_model."): v for k, v in text_encoder.state_dict().items()}
    file |= clip_to_ldm(plain) if variant == "sd1" else open_clip_to_ldm(plain)
    # what real files carry beside the weights
    file |= {"alphas_cumprod": torch.rand(1000), "betas": torch.rand(1000), "model_ema.decay": torch.tensor(0.9)}
    return Small(variant, configs, unet, vae, text_encoder, {k: v.clone() for k, v in file.items()})


def edit(folder: Path, **changes: object) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(config))
    return config


def shake(*modules: nn.Module) -> None:
    """No weight may be one or zero, or two of them could change places unseen."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)


def write(tensors: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    said = {f"modelspec.{k}": v for k, v in metadata.items()}
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path, said)
    return path


def same(ours: nn.Module, theirs: nn.Module) -> None:
    found, wanted = ours.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_the_shipped_configs_are_the_published_models() -> None:
    counts = {}
    for variant in VARIANTS:
        folder = single_file.config_folder(variant)
        config = {p: json.loads((folder / p / "config.json").read_text()) for p in ("unet", "vae", "text_encoder")}
        with init_empty_weights():
            parts = {
                "unet": UNet2DConditionModel.from_config(config["unet"]),
                "vae": AutoencoderKL.from_config(config["vae"]),
                "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(config["text_encoder"])),
            }
        counts[variant] = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert counts["sd1"] == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    assert counts["sd2"] == {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}


@pytest.mark.parametrize(("variant", "pad"), [("sd1", 49407), ("sd2", 0)])
def test_the_tokenizer_is_clips(variant: Variant, pad: int) -> None:
    tokenizer = load_tokenizer(variant)
    assert tokenizer("a photo of a cat")["input_ids"] == CAT
    assert tokenizer("A photo   of a CAT")["input_ids"] == CAT
    padded = tokenizer("a photo of a cat", padding="max_length")["input_ids"]
    assert padded == CAT + [pad] * 70
    assert len(single_file.clip_vocabulary(single_file.clip_merges())) == 49_408


def test_a_single_file_gives_the_model_it_was_written_from(small: Small, tmp_path: Path) -> None:
    opened = open_checkpoint(write(small.file, tmp_path / "base.safetensors"))
    parts = load_checkpoint(opened, torch.float32, small.configs)
    assert opened.variant == small.variant
    for ours, theirs in zip(parts[:3], (small.unet, small.vae, small.text_encoder), strict=True):
        same(ours, theirs)
    ids = torch.tensor([CAT])
    with torch.no_grad():
        text = parts.text_encoder(ids)[0]
        assert_close(text, small.text_encoder(ids)[0], rtol=0, atol=0)
        noise, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
        assert_close(parts.unet(noise, t, text).sample, small.unet(noise, t, text).sample, rtol=0, atol=0)
        pixels = torch.randn(1, 3, 32, 32)
        assert_close(parts.vae(pixels).sample, small.vae(pixels).sample, rtol=0, atol=0)


@ONE_LINE
def test_weights_outlive_the_file(small: Small, tmp_path: Path) -> None:
    path = write(small.file, tmp_path / "base.safetensors")
    parts = load_checkpoint(open_checkpoint(path), torch.float32, small.configs)
    path.write_bytes(bytes(path.stat().st_size))
    same(parts.unet, small.unet)


@ONE_LINE
def test_the_autoencoder_stays_in_float32(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in small.file.items()}
    family = opened_family(small, write(half, tmp_path / "half.safetensors"), monkeypatch, torch.bfloat16)
    found = {name: {p.dtype for p in family.parts[name].parameters()} for name in family.parts}
    assert found == {"unet": {torch.bfloat16}, "vae": {torch.float32}, "text_encoder": {torch.bfloat16}}


def opened_family(
    small: Small, path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32
) -> Family:
    monkeypatch.setattr(single_file, "config_folder", lambda _: small.configs)
    return families.load(str(path), dtype)


class Reads:
    """How often a part's weights were read, by how the names of its tensors begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = list[str]()
        original = weights.load_tensors

        def load(path: Path, wanted: Any = None) -> dict[str, Tensor]:
            found = original(path, wanted)
            self.seen += sorted({name.partition(".")[0] for name in found})
            return found

        monkeypatch.setattr(weights, "load_tensors", load)


def test_each_part_is_read_alone_and_only_when_it_is_asked_for(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"prediction_type": "epsilon"}
    path, reads = write(small.file, tmp_path / "base.safetensors", **said), Reads(monkeypatch)
    family = opened_family(small, path, monkeypatch)
    family.on_meta(str(path), family.facts)
    assert reads.seen == []
    for name, prefix in {"vae": "first_stage_model", "text_encoder": "cond_stage_model", "unet": "model"}.items():
        before = list(reads.seen)
        family.parts.load(name, name)
        assert reads.seen == [*before, prefix]


def test_a_file_that_does_not_say_what_it_predicts_is_probed_and_its_unet_read_once(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = {} if small.variant == "sd2" else {"v_pred": torch.zeros(0)}
    said = {} if small.variant == "sd2" else {"prediction_type": "epsilon"}
    path, reads = write(small.file | marks, tmp_path / "base.safetensors", **said), Reads(monkeypatch)
    asked = list[nn.Module]()
    monkeypatch.setattr(single_file, "probe_prediction", lambda unet: asked.append(unet) or "v")
    family = opened_family(small, path, monkeypatch)
    assert family.facts.prediction_known and family.facts.prediction == family.process.prediction == "v"
    assert asked == [family.parts["unet"]] and reads.seen == ["model"]


def test_release_frees_every_part_of_a_single_file(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = opened_family(small, write(small.file, tmp_path / "base.safetensors"), monkeypatch)
    released_is_freed(family)


def test_other_spellings_of_a_file_are_the_same_model(small: Small, tmp_path: Path) -> None:
    """No level `text_model`, the autoencoder under `vae.`, and the layer 2.x never runs left out."""
    file = {k.replace("transformer.text_model.", "transformer."): v for k, v in small.file.items()}
    file = {k.replace("first_stage_model.", "vae."): v for k, v in file.items() if ".resblocks.23." not in k}
    opened = open_checkpoint(write(file, tmp_path / "base.safetensors"))
    parts = load_checkpoint(opened, torch.float32, small.configs)
    same(parts.vae, small.vae)
    same(parts.text_encoder, small.text_encoder)


MISSING = {
    "model.diffusion_model.time_embed.0.weight": "time_embedding.linear_1.weight",
    "model.diffusion_model.input_blocks.3.0.op.bias": "down_blocks.0.downsamplers.0.conv.bias",
    "model.diffusion_model.output_blocks.2.1.conv.bias": "output_blocks.2.1.conv.bias",
    "first_stage_model.encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
    "first_stage_model.decoder.up.1.upsample.conv.bias": "decoder.up.1.upsample.conv.bias",
}


@ONE_LINE
@pytest.mark.parametrize("name", MISSING)
def test_a_missing_weight_is_named(small: Small, tmp_path: Path, name: str) -> None:
    file = {k: v for k, v in small.file.items() if k != name}
    opened = open_checkpoint(write(file, tmp_path / "base.safetensors"))
    with pytest.raises(BaseError, match=rf"(?m)1 weight is missing: {re.escape(MISSING[name])}$"):
        load_checkpoint(opened, torch.float32, small.configs)


def test_a_missing_text_weight_is_named(small: Small, tmp_path: Path) -> None:
    name = next(k for k in small.file if k.startswith("cond_stage_model.") and ".1." in k and "out_proj.bias" in k)
    file = {k: v for k, v in small.file.items() if k != name}
    opened = open_checkpoint(write(file, tmp_path / "base.safetensors"))
    named = r"(?m)text encoder: 1 weight is missing: .*layers\.1\.self_attn\.out_proj\.bias$"
    with pytest.raises(BaseError, match=named):
        load_checkpoint(opened, torch.float32, small.configs)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "cond_stage_model."])
def test_a_weight_of_another_model_is_named(small: Small, tmp_path: Path, prefix: str) -> None:
    opened = open_checkpoint(write(small.file | {f"{prefix}stranger": torch.rand(3)}, tmp_path / "base.safetensors"))
    with pytest.raises(BaseError, match=rf"1 weight is not of this model: (text_model\.)?{prefix}stranger"):
        load_checkpoint(opened, torch.float32, small.configs)


@ONE_LINE
def test_weights_of_another_size_are_named(small: Small, tmp_path: Path) -> None:
    opened = open_checkpoint(write(small.file, tmp_path / "base.safetensors"))
    with pytest.raises(BaseError, match=r"UNet: .* of another shape: conv_in\.weight"):
        load_checkpoint(opened, torch.float32)


ZERO_CONV = "model.diffusion_model.input_blocks.0.0.weight"
OTHERS = {
    "a LoRA or other adapter": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)},
    "a LoRA or other adapter ": {"unet.mid_block.attentions.0.to_q.lora_A.weight": (4, 8)},
    "a LoRA or other adapter  ": {"lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": (4, 8)},
    "a textual-inversion embedding": {"emb_params": (4, 8)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)},
    "an SDXL checkpoint without its first text encoder": {
        ZERO_CONV: (8, 4, 3, 3),
        "conditioner.embedders.1.model.positional_embedding": (77, 8),
        "model.diffusion_model.label_emb.0.0.weight": (8, 8),
    },
    "an SDXL checkpoint without its VAE": {
        ZERO_CONV: (8, 4, 3, 3),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (8,),
        "conditioner.embedders.1.model.positional_embedding": (77, 8),
    },
    "an SDXL refiner": {
        ZERO_CONV: (8, 4, 3, 3),
        "conditioner.embedders.0.model.positional_embedding": (77, 8),
    },
    "an SDXL UNet": {ZERO_CONV: (8, 4, 3, 3), "model.diffusion_model.label_emb.0.0.weight": (8, 8)},
    "a Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": (8,)},
    "a FLUX checkpoint": {"double_blocks.0.img_attn.norm.key_norm.scale": (8,)},
    "a bare UNet in diffusers names": {"conv_in.weight": (8, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (8, 8)},
    "a bare VAE": {"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)},
    "a bare VAE ": {"encoder.conv_in.weight": (8, 3, 3, 3)},
    "a bare text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)},
    "no model we know": {"weight": (8,)},
    "an inpainting or depth base": {ZERO_CONV: (8, 9, 3, 3)},
    "1.x checkpoint without a text encoder": {
        ZERO_CONV: (8, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (8, 8, 1, 1),
    },
    "2.x checkpoint without a VAE": {
        ZERO_CONV: (8, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (8, 8),
        "cond_stage_model.model.ln_final.bias": (8,),
    },
}


@pytest.mark.parametrize("title", OTHERS)
def test_a_file_that_is_no_base_of_ours_is_called_by_its_name(title: str, tmp_path: Path) -> None:
    path = write({k: torch.zeros(v) for k, v in OTHERS[title].items()}, tmp_path / "file.safetensors")
    with pytest.raises(BaseError, match=f"{re.escape(title.strip())}.*single files are read of") as raised:
        open_checkpoint(path)
    assert raised.value.hint


@ONE_LINE
def test_a_truncated_file_is_refused(small: Small, tmp_path: Path) -> None:
    path = write(small.file, tmp_path / "base.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BaseError, match="truncated"):
        open_checkpoint(path)


def test_a_pickled_file_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "base.ckpt"
    path.write_bytes(b"never read")
    with pytest.raises(BaseError, match="pickled"):
        open_checkpoint(path)


HEADER = {
    "sd1": {"model.diffusion_model.input_blocks.1.1.proj_in.weight": (8, 8, 1, 1)},
    "sd2": {"model.diffusion_model.input_blocks.1.1.proj_in.weight": (8, 8)},
}
COMMON = {ZERO_CONV: (8, 4, 3, 3), "cond_stage_model.x": (1,), "first_stage_model.x": (1,)}
MARKS = {"v_pred": (0,), "ztsnr": (0,)}
SAID = [
    ("sd1", (), {}, None, False, 512),
    ("sd1", ("v_pred",), {}, "v", False, 512),
    ("sd1", ("v_pred", "ztsnr"), {}, "v", True, 512),
    ("sd1", ("ztsnr",), {}, None, True, 512),
    ("sd1", (), {"prediction_type": "v", "resolution": "768x768"}, "v", False, 768),
    ("sd1", ("v_pred",), {"prediction_type": "epsilon"}, None, False, 512),
    ("sd2", (), {}, None, False, 512),
    ("sd2", (), {"prediction_type": "v"}, "v", False, 768),
    ("sd2", (), {"architecture": "stable-diffusion-v2-768-v"}, "v", False, 768),
    ("sd2", (), {"architecture": "stable-diffusion-v2-512"}, "epsilon", False, 512),
    ("sd2", ("v_pred", "ztsnr"), {"resolution": "640x768"}, "v", True, 768),
]


@pytest.mark.parametrize(("variant", "marks", "said", "prediction", "zero_snr", "resolution"), SAID)
def test_what_a_file_says_of_its_prediction_is_read(
    variant: str, marks: tuple[str, ...], said: dict[str, str], prediction: str, zero_snr: bool, resolution: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    shapes = COMMON | HEADER[variant] | {m: MARKS[m] for m in marks}
    opened = open_checkpoint(write({k: torch.zeros(v) for k, v in shapes.items()}, tmp_path / "a.safetensors", **said))
    assert (opened.prediction, opened.zero_snr, opened.resolution) == (prediction, zero_snr, resolution)


@pytest.mark.parametrize(("spread", "likely", "resolution"), [(0.03, "epsilon", 512), (0.2, "v", 768)])
def test_a_silent_2x_file_is_guessed_until_probed(spread: float, likely: str, resolution: int, tmp_path: Path) -> None:
    tell = {"model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-spread, spread])}
    file = {k: torch.zeros(v) for k, v in (COMMON | HEADER["sd2"]).items()}
    opened = open_checkpoint(write(file | tell, tmp_path / "a.safetensors"))
    assert (opened.prediction, opened.likely, opened.resolution) == (None, likely, resolution)


@ONE_LINE
def test_the_scheduler_follows_the_prediction(small: Small, tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    opened = open_checkpoint(write(small.file | marks, tmp_path / "base.safetensors"))
    config = SingleFile(opened.path, small.configs).scheduler()
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"]
    assert config["_class_name"] == "DDIMScheduler"


def test_a_header_alone_identifies_a_file(small: Small, tmp_path: Path) -> None:
    header = weights.read_header(write(small.file, tmp_path / "base.safetensors"))
    assert identify(header).variant == small.variant
