"""Numbers that are no numbers, in weights, alphas and bases: named, and never a black picture with exit code 0."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.hostile import attempt
from torch import Tensor

Spoil = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def each(ending: str, change: Callable[[Tensor], Tensor]) -> Spoil:
    return lambda tensors: {k: change(t) if k.endswith(ending) else t for k, t in tensors.items()}


def one_nan(tensor: Tensor) -> Tensor:
    return torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) == 0, torch.nan, tensor)


SPOILT: dict[str, tuple[Spoil, str]] = {
    "alpha NaN": (each(".alpha", lambda t: t * torch.nan), "not finite"),
    "alpha infinite": (each(".alpha", lambda t: t * torch.inf), "not finite"),
    "one weight NaN": (each("lora_down.weight", one_nan), "not finite"),
    "weights of int8": (each("lora_up.weight", lambda t: t.to(torch.int8)), "int8"),
    "weights of booleans": (each("lora_up.weight", lambda t: t > 0), "bool"),
    "weights of 1e15": (each("lora_up.weight", lambda t: t * 1e15), "noise|not finite"),
    "weights of 1e38": (each("lora_up.weight", lambda t: t / t.abs().max() * 3e38), "noise|not finite"),
    "weights of complex numbers": (each("lora_up.weight", lambda t: t.to(torch.complex64)), "complex64|safetensors"),
}  # fmt: skip


def spoilt(place: Path, how: Spoil) -> Path:
    """The sound file with other weights, and without the hash that would tell."""
    file = place / "mug.safetensors"
    with safe_open(file, framework="pt") as sound:
        told = {k: v for k, v in (sound.metadata() or {}).items() if "hash" not in k}
    tensors = how(load_file(file))
    file.unlink()
    save_file({k: t.contiguous() for k, t in tensors.items()}, file, told)
    return file


@pytest.mark.parametrize("what", SPOILT)
def test_verify_passes_no_file_with_numbers_that_are_none(what: str, place: Path) -> None:
    how, said = SPOILT[what]
    spoilt(place, how)
    found = attempt(["verify", "mug.safetensors", "--base", "pocket", "--json"], place)
    assert not found.traceback and found.code in (2, 5), found.text
    assert re.search(said, found.text), found.text
    if found.out:
        assert json.loads(found.out)["ok"] is False


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64])
def test_every_float_is_read(kind: torch.dtype, place: Path) -> None:
    spoilt(place, each(".weight", lambda t: t.to(kind)))
    for command in (
        ["inspect", "mug.safetensors"],
        ["export", "--from", "mug.safetensors", "--out", "new.safetensors"],
    ):
        found = attempt(command, place)
        assert found.code == 0 and not found.traceback, found.text


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e308", "1e5", "1e-400x"])
def test_an_adapter_is_applied_at_a_weight_that_is_a_number(weight: str, place: Path) -> None:
    found = attempt(
        ["sample", "--base", "pocket", "--adapter", f"mug.safetensors:{weight}", "--prompt", "a cup", "--out", "new"],
        place,
    )
    assert found.code == 2 and "error:" in found.err and not (place / "new").exists(), found.text


def test_a_base_with_one_weight_that_is_no_number_gives_no_black_picture(place: Path) -> None:
    file = place / "base/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.weight"][0, 0, 0, 0] = torch.nan
    file.unlink()
    save_file(tensors, file)
    found = attempt(["sample", "--base", "base", "--prompt", "a cup", "--steps", "1", "--out", "new"], place)
    assert found.code == 5 and "not finite" in found.err and "base" in found.err, found.text


def test_a_damaged_adapter_gives_no_black_picture(place: Path) -> None:
    spoilt(place, each("lora_up.weight", lambda t: t / t.abs().max() * 3e38))
    found = attempt(
        [
            "sample",
            "--base",
            "pocket",
            "--adapter",
            "mug.safetensors",
            "--prompt",
            "a cup",
            "--steps",
            "1",
            "--out",
            "x",
        ],
        place,
    )
    assert found.code == 5 and "mug.safetensors" in found.err and not list((place / "x").glob("*.png")), found.text
