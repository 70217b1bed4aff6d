"""What the files of a base hold beside what is read, other models than ours, and weights stored otherwise."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bench import bench, settled
from support.one_file import sdxl_tensors
from support.spoilt_bases import UNET, header_only, refusal
from torch.testing import assert_close

from finetune import families
from finetune.errors import BaseError

# -- what nothing reads -----------------------------------------------------------------------------------------------


def test_what_nothing_reads_of_a_folder_is_named(folder: Callable[..., Path], data: Path) -> None:
    base = folder(
        "sdxl", index={"controlnet": ["diffusers", "ControlNetModel"]}, unet={"new_gate": True}, vae={"tiling": 2},
        scheduler={"sigma_data": 0.5},
    )  # fmt: skip
    facts = families.detect(str(base))
    assert facts.unused == ("model_index.json: controlnet", "unet/config.json: new_gate", "vae/config.json: tiling",
                            "scheduler/scheduler_config.json: sigma_data")  # fmt: skip
    assert any("unet/config.json: new_gate" in notice for notice in settled(base, data).notices)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_nothing_is_left_over_of_a_folder_that_is_as_published(kept: dict[str, Path], name: str) -> None:
    assert families.detect(str(kept[name])).unused == ()
    assert families.detect("pocket").unused == ()


def test_what_nothing_reads_of_a_file_is_named(data: Path, tmp_path: Path) -> None:
    extra = ("mystery", "model_ema.decay", "model_ema.num_updates", "betas", "logit_scale")
    file = header_only(tmp_path / "full.safetensors", "v_pred", *extra)
    assert families.detect(str(file)).unused == ("model_ema.* (2)", "mystery")
    assert any("model_ema.* (2), mystery" in notice for notice in settled(file, data).notices)


# -- other models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "said", "words"),
    [("text_encoder_2", [None, None], "is without its text_encoder_2"),
     ("unet", ["my_code", "MyUNet"], "its unet is of the class MyUNet, not UNet2DConditionModel"),
     ("vae", ["diffusers", "AutoencoderTiny"], "its vae is of the class AutoencoderTiny"),
     ("text_encoder", ["transformers", "T5EncoderModel"], "its text_encoder is of the class T5EncoderModel")],
)  # fmt: skip
def test_parts_of_other_classes_are_refused_by_name(
    folder: Callable[..., Path], part: str, said: list[str], words: str
) -> None:
    assert words in refusal(folder("sdxl", index={part: said}))


@pytest.mark.parametrize(
    ("channels", "title"),
    [(9, "inpainting"), (5, "depth"), (8, "InstructPix2Pix"), (7, "upscaler"), (12, "UNet takes 12 channels")],
)
def test_a_unet_that_takes_a_picture_too_is_refused_by_kind(
    channels: int, title: str, folder: Callable[..., Path], tmp_path: Path
) -> None:
    assert title in refusal(folder("sdxl", unet={"in_channels": channels}))
    wide = {f"{UNET}input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3)}
    assert title in refusal(header_only(tmp_path / "wide.safetensors", **wide))


@pytest.mark.parametrize("key", ["class_embed_type", "num_class_embeds", "encoder_hid_dim_type"])
def test_a_unet_that_is_told_more_is_refused_by_its_key(key: str, folder: Callable[..., Path]) -> None:
    assert f"({key} = " in refusal(folder("sdxl", unet={key: 4}))


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLInpaintPipeline", "StableDiffusionDepth2ImgPipeline",
             "StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLImg2ImgPipeline"],
)  # fmt: skip
def test_a_pipeline_that_takes_a_picture_too_is_refused_with_what_to_train_on(
    name: str, folder: Callable[..., Path]
) -> None:
    with pytest.raises(BaseError, match=f"it holds a {name}") as raised:
        families.detect(str(folder("sdxl", index={"_class_name": name})))
    assert "text-to-image base of the same line" in raised.value.hint


@pytest.mark.parametrize(
    ("lost", "title"),
    [("conditioner.embedders.0.", "without its first text encoder"),
     ("conditioner.embedders.1.", "without its second text encoder"), ("first_stage_model.", "without its VAE")],
)  # fmt: skip
def test_a_file_without_a_part_says_which(lost: str, title: str, tmp_path: Path) -> None:
    whole = load_file(header_only(tmp_path / "whole.safetensors"))
    save_file({n: t for n, t in whole.items() if not n.startswith(lost)}, tmp_path / "part.safetensors")
    assert title in refusal(tmp_path / "part.safetensors")


def test_a_pruned_unet_is_read_as_a_folder_and_refused_as_a_file(
    folder: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    """As SSD-1B: less deep, and without attention in the middle."""
    from diffusers import UNet2DConditionModel

    base = folder("sdxl", unet={"transformer_layers_per_block": [0, 1, 2], "mid_block_type": "UNetMidBlock2D"})
    told = UNet2DConditionModel.load_config(base / "unet") | {"mid_block_type": None}
    pruned = UNet2DConditionModel.from_config(told)
    shutil.rmtree(base / "unet")
    pruned.save_pretrained(base / "unet")
    b = bench(base, data)
    assert b.train() and not [n for n in b.weights() if "mid_block" in n]
    published = {
        f"{UNET}{place}.transformer_blocks.{n}.norm1.weight": torch.zeros(8)
        for place, depth in (("input_blocks.4.1", 1), ("input_blocks.7.1", 4)) for n in range(depth)
    }  # fmt: skip
    said = refusal(header_only(tmp_path / "ssd.safetensors", **published))
    assert "with another UNet, as SSD-1B, Vega and KOALA have: transformers [0, 1, 4] and 0, not [0, 2, 10]" in said


# -- how weights are stored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_float_types_are_read_as_the_numbers_they_are(
    dtype: torch.dtype, kept: dict[str, Path], silent: Path
) -> None:
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(silent).items()}
    save_file(tensors, silent)
    name = "conv_in.weight"
    found = families.load(str(silent)).parts["unet"].state_dict()[name]
    assert_close(found, tensors[f"{UNET}input_blocks.0.0.weight"].float(), rtol=0, atol=0)


WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile, around all": lambda n: f"_orig_mod.{n}",
    "torch.compile, around the UNet": lambda n: n.replace(UNET, f"{UNET}_orig_mod."),
    "DDP": lambda n: f"module.{n}",
    "DDP around torch.compile": lambda n: f"module._orig_mod.{n}",
    "FSDP": lambda n: n.replace(UNET, f"{UNET}_fsdp_wrapped_module."),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_file_of_a_wrapped_model_is_read_whole(wrapper: str, kept: dict[str, Path], silent: Path) -> None:
    plain = families.load(str(silent))
    kept_parts = {name: plain.parts[name].state_dict() for name in plain.parts}  # read before the file is another
    save_file({WRAPPED[wrapper](n): t for n, t in sdxl_tensors(kept["sdxl"]).items()}, silent)
    wrapped = families.load(str(silent))
    assert wrapped.facts.dtype == plain.facts.dtype == "fp32"
    for part in plain.parts:
        ours, theirs = wrapped.parts[part].state_dict(), kept_parts[part]
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours), part


def test_two_weights_of_one_name_are_refused(silent: Path) -> None:
    tensors = load_file(silent)
    name = next(iter(tensors))
    save_file(tensors | {f"_orig_mod.{name}": tensors[name].clone()}, silent)
    assert f"holds {name} twice" in refusal(silent)


def test_a_folder_of_a_wrapped_model_is_refused_by_kind(folder: Callable[..., Path]) -> None:
    base = folder("sd15")
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({f"_orig_mod.{n}": t.clone() for n, t in load_file(file).items()}, file)
    assert "was saved from a wrapped module (torch.compile, DDP or FSDP)" in refusal(base)


def test_a_denoiser_of_its_own_is_read_from_a_wrapped_model(kept: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(kept["sd15"] / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({f"_orig_mod.{n}": 2 * t for n, t in tensors.items()}, tmp_path / "tune.safetensors")
    found = families.load(f"{kept['sd15']} + {tmp_path / 'tune.safetensors'}").parts["unet"].state_dict()
    assert all(torch.equal(found[n], 2 * t) for n, t in tensors.items())


PACKED = {
    f"{UNET}input_blocks.0.0.scale_weight": "fp8 weights with scales of their own",
    "scaled_fp8": "fp8 weights with scales of their own",
    f"{UNET}out.2.weight.absmax": "weights packed by bitsandbytes",
    f"{UNET}out.2.weight.quant_state.bitsandbytes__nf4": "weights packed by bitsandbytes",
    f"{UNET}out.2.qweight": "weights packed by GPTQ, AWQ or SVDQuant",
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_are_refused_by_kind(name: str, folder: Callable[..., Path], tmp_path: Path) -> None:
    assert PACKED[name] in refusal(header_only(tmp_path / "packed.safetensors", name))
    base = folder("sd15")
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({n: t.clone() for n, t in load_file(file).items()} | {name: torch.zeros(1)}, file)
    assert PACKED[name] in refusal(base)


def test_integers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    integers = {f"{UNET}out.2.weight": torch.zeros(4, 4, dtype=torch.int8)}
    assert "weights in integers" in refusal(header_only(tmp_path / "int8.safetensors", **integers))
