"""Bases of true size with random weights: real steps, and the memory that `plan` predicts.

`pytest -m slow -s tests/training/test_real_size.py`: two steps on this CPU. Stable Diffusion 1.5 and XL at the
resolution each was made for: minutes, 12 GB of memory and of disk; FLUX.1 dev on a base in 4 bits: half an hour, 24 GB
of disk. `pytest -m gpu -s tests/training/test_real_size.py`: ten steps of five bases on a GPU of 40 GB.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL
from families.cases import CASES, Case
from families.cases import CONFIGS as TRUE_CONFIGS
from safetensors.torch import save_file
from support.bases import tiny_base
from support.photos import pictures

from finetune import families
from finetune.families.single_file import CONFIGS

RECOMPUTED = "gradient_checkpointing = true\n"
DECODERS = [case for case in CASES if case.decoder_gib]
SCRIPT = Path(__file__).with_name("measured_steps.py")


def write_base(folder: Path, line: str, dtype: torch.dtype) -> Path:
    """The published configs with random weights, a part at a time."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from finetune.families.single_file import load_tokenizer

    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    if line == "sdxl":
        kinds["text_encoder_2"] = CLIPTextModelWithProjection
    for part, kind in kinds.items():
        config = json.loads((CONFIGS / line / part / "config.json").read_text())
        torch.set_default_dtype(dtype)
        made = kind(CLIPTextConfig.from_dict(config)) if part.startswith("text") else kind.from_config(config)
        torch.set_default_dtype(torch.float32)
        made.save_pretrained(folder / part)
        del made
    for part in ("scheduler", "tokenizer", "tokenizer_2"):
        if (CONFIGS / line / part).is_dir():
            (folder / part).mkdir(parents=True)
            for file in (CONFIGS / line / part).iterdir():
                (folder / part / file.name).write_bytes(file.read_bytes())
            if part.startswith("tokenizer"):
                load_tokenizer(line, part=part).save_pretrained(folder / part)  # type: ignore[arg-type]
    (folder / "model_index.json").write_bytes((CONFIGS / line / "model_index.json").read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", DECODERS, ids=[case.name for case in DECODERS])
def test_decoding_takes_what_the_recipes_gpus_are_counted_with(case: Case, tmp_path: Path) -> None:
    vae, px = case.published[0].configs / "vae", case.resolution
    config = json.loads((vae / "config.json").read_text())
    decoder = getattr(diffusers, config["_class_name"]).from_config(config).eval()
    flat = config["_class_name"] != "AutoencoderKLQwenImage"
    channels = config["latent_channels"] if flat else config["z_dim"]
    latents = torch.zeros(1, channels, *([] if flat else [1]), px // 8, px // 8)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as seen:
        decoder.decode(latents)
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    peak = max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]")
    taken = (peak + sum(p.nbytes for p in decoder.parameters())) / 2**30
    print(vae, f"{taken:.2f} GiB")  # noqa: T201 - shown with -s
    assert taken == pytest.approx(case.decoder_gib, rel=0.05)


def write_denoiser(base: Path, configs: Path) -> Path:
    """Put a denoiser of true size with random weights, and the true autoencoder's structure, into a small base."""
    for part in ("vae", "transformer"):
        (base / part / "config.json").write_bytes((configs / part / "config.json").read_bytes())
    AutoencoderKL.from_config(json.loads((base / "vae" / "config.json").read_text())).save_pretrained(base / "vae")
    facts = families.detect(str(base))
    [(name, module)] = families.family_class(facts.family).on_meta(str(base), facts).items()
    (base / name / "diffusion_pytorch_model.safetensors").unlink()
    noise = (torch.randn(1 << 26) * 0.02).bfloat16()
    shard, number, places = dict[str, torch.Tensor](), 0, dict[str, str]()

    def write() -> None:
        file = f"diffusion_pytorch_model-{number:05d}-of-00099.safetensors"
        save_file(shard, base / name / file)
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for key, tensor in module.state_dict().items():
        if tensor.ndim == 1 and key.endswith("weight"):
            shard[key] = torch.ones(tensor.shape, dtype=torch.bfloat16)
        else:
            many = -(-tensor.numel() // noise.numel())
            shard[key] = noise.repeat(many)[: tensor.numel()].reshape(tensor.shape).clone()
        if sum(t.nbytes for t in shard.values()) > 1 << 30:
            write()
            number += 1
    write()
    index = {"metadata": {"total_size": sum(t.numel() * 2 for t in module.state_dict().values())}, "weight_map": places}
    (base / name / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return base


def test_what_measures_them_still_runs(tmp_path: Path) -> None:
    """A small base, as the others are measured by hand: of their memory it says nothing."""
    found = steps_of(tiny_base(tmp_path / "base", "sd15"), "fp32", 64, "", tmp_path)
    assert found["told"] > 0 and found["peak"] > 0


@pytest.mark.slow
def test_two_steps_of_sd15_at_true_size_take_the_memory_that_plan_says(tmp_path: Path) -> None:
    found = steps_of(write_base(tmp_path / "base", "sd1", torch.float32), "fp32", 512, "", tmp_path)
    assert found["peak"] == pytest.approx(found["told"], rel=0.15), found


@pytest.mark.slow
def test_two_steps_of_sdxl_at_true_size_take_the_memory_that_plan_says(tmp_path: Path) -> None:
    found = steps_of(write_base(tmp_path / "base", "sdxl", torch.bfloat16), "bf16", 1024, RECOMPUTED, tmp_path)
    assert found["peak"] == pytest.approx(found["told"], rel=0.15), found


@pytest.mark.slow
def test_flux_at_true_size_on_a_base_in_4_bits_takes_two_steps_in_the_memory_that_plan_says(tmp_path: Path) -> None:
    base = write_denoiser(tiny_base(tmp_path / "base", "flux"), TRUE_CONFIGS / "flux-dev")
    found = steps_of(base, "bf16", 256, f"{RECOMPUTED}base_bits = 4", tmp_path)
    assert found["peak"] == pytest.approx(found["told"], rel=0.15), found


GPU = {
    # published line -> small base, px, and what the recipe says beside
    "sd1": ("sd15", 512, ""),
    "sdxl": ("sdxl", 1024, ""),
    "sd3.5-medium": ("sd35", 1024, RECOMPUTED),
    "flux-dev": ("flux", 1024, RECOMPUTED),
    "flux-dev in 4 bits": ("flux", 1024, f"{RECOMPUTED}base_bits = 4"),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("line", GPU)
def test_ten_steps_on_a_gpu_take_the_memory_that_plan_says(line: str, tmp_path: Path) -> None:
    variant, px, more = GPU[line]
    if variant in ("sd15", "sdxl"):
        base = write_base(tmp_path / "base", line, torch.bfloat16)
    else:
        base = write_denoiser(tiny_base(tmp_path / "base", variant), TRUE_CONFIGS / line.partition(" ")[0])  # type: ignore[arg-type]
    found = steps_of(base, "bf16", px, more, tmp_path, steps=10)
    assert found["peak"] == pytest.approx(found["told"], rel=0.15), found


def steps_of(base: Path, precision: str, px: int, more: str, tmp_path: Path, steps: int = 2) -> dict[str, Any]:
    """A run up to its last step, without the proof: what plan says of memory, and the peak."""
    data = pictures(tmp_path / "data", [(px, px)] * 2)
    (tmp_path / "recipe.toml").write_text(
        f'base = "{base}"\n[data]\npath = "{data}"\nresolution = {px}\ncache = "{tmp_path / "cache"}"\n'
        f'[train]\nsteps = {steps}\nprecision = "{precision}"\n{more}\n[sample]\nprompts = ["a"]\n'
    )
    # the C library keeps freed blocks for later (docs/log.md): given back at once, what is measured is what is needed
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
    small = "small encoders" if (base / "transformer").is_dir() else "true encoders"
    command = [sys.executable, str(SCRIPT), str(tmp_path / "recipe.toml"), small]
    done = subprocess.run(command, capture_output=True, text=True, env=given_back)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(base, found)  # noqa: T201 - the figures of docs/log.md, shown with -s
    assert len(found["losses"]) == steps and all(0 < loss < 100 for loss in found["losses"])
    return dict(found)
