"""Stable Diffusion folders: what they are is detected, what is wrong is named, what they compute is diffusers'."""

import json
import re
import shutil
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from support.bases import tiny_base
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTextModel

from finetune import families
from finetune import resources as shipped
from finetune.errors import BaseError
from finetune.families.base import Conditioning, Family, components, read, save
from finetune.families.sd import StableDiffusion
from finetune.families.unet import SCHEDULERS
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Session

VARIANTS = ("sd15", "sd21")

WEIGHTS = {name: part.file for name, part in StableDiffusion.PARTS.items()}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {variant: tiny_base(folder / variant, variant) for variant in VARIANTS}


@pytest.fixture
def base(bases: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bases["sd15"], tmp_path / "base"))


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def refusal(base: str | Path) -> BaseError:
    """Of detecting, else of loading; one sentence, that names the thing."""
    with pytest.raises(BaseError) as e:
        family = families.load(str(base))
        for part in family.parts:
            assert family.parts[part]
    assert "\n" not in e.value.problem and e.value.exit_code == 2
    return e.value


# -- what a base is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variant", "prediction", "zero_snr", "resolution", "stride", "tokens"),
    [
        ("sd15", "sd1", "epsilon", False, 64, 64, 77),
        ("sd21", "sd2", "v", False, 64, 64, 77),
        ("pocket", "sd1", "v", True, 64, 16, 32),
    ],
)
def test_facts_are_read_from_the_configs(
    bases: dict[str, Path], name: str, variant: str, prediction: str, zero_snr: bool, resolution: int, stride: int,
    tokens: int,
) -> None:  # fmt: skip
    facts = families.detect(str(bases.get(name, name)))
    found = (facts.variant, facts.prediction, facts.zero_snr, facts.resolution, facts.stride, facts.max_tokens)
    assert found == (variant, prediction, zero_snr, resolution, stride, tokens)
    assert facts.family == "sd" and facts.prediction_known and "scheduler_config.json" in facts.evidence


def test_facts_follow_the_configs_and_no_weights_are_read(base: Path) -> None:
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    edit(base / "unet" / "config.json", sample_size=96, use_linear_projection=True)
    for part, file in WEIGHTS.items():  # noise, as long as it was
        path = base / part / file
        raw = path.read_bytes()
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        path.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))
    facts = families.detect(str(base))
    assert (facts.variant, facts.prediction, facts.zero_snr, facts.resolution) == ("sd2", "v", True, 768)


def test_the_dtypes_of_the_stored_denoiser_are_said(base: Path, tmp_path: Path) -> None:
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}  # not mapped from what is overwritten
    half = {name: t if "norm" in name else t.half() for name, t in tensors.items()}
    save_file(half, file)
    assert families.detect(str(base)).described() == "sd (sd1), predicts epsilon, stored in fp16 and fp32"
    save_file({name: t.bfloat16() for name, t in tensors.items()}, tmp_path / "own.safetensors")
    assert families.detect(f"{base} + {tmp_path / 'own.safetensors'}").dtype == "bf16"


def test_a_scheduler_that_does_not_say_predicts_epsilon(base: Path) -> None:
    """As in diffusers: SD 1.4's own config has no prediction_type."""
    edit(base / "scheduler" / "scheduler_config.json", prediction_type=None)
    assert families.detect(str(base)).prediction == "epsilon"


def test_zero_snr_reaches_the_process_and_the_pipeline(base: Path) -> None:
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    family = families.load(str(base))
    assert float(family.process.path.alpha[-1]) == 0.0 and family.process.prediction == "v"
    assert float(family.pipeline().scheduler.alphas_cumprod[-1]) < 1e-6


# -- what is refused --------------------------------------------------------------------------------------------------


def sdxl(base: Path) -> None:
    edit(base / "model_index.json", _class_name="KandinskyPipeline")


def inpainting(base: Path) -> None:
    edit(base / "unet" / "config.json", in_channels=9)


def sample_prediction(base: Path) -> None:
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="sample")


def odd_betas(base: Path) -> None:
    edit(base / "scheduler" / "scheduler_config.json", beta_schedule="squaredcos_cap_v2")


def truncated(base: Path) -> None:
    file = base / "unet" / WEIGHTS["unet"]
    file.write_bytes(file.read_bytes()[:-1000])


def truncated_header(base: Path) -> None:
    file = base / "vae" / WEIGHTS["vae"]
    file.write_bytes(file.read_bytes()[:100])


def empty_file(base: Path) -> None:
    (base / "vae" / WEIGHTS["vae"]).write_bytes(b"")


def pickled(base: Path) -> None:
    (base / "unet" / WEIGHTS["unet"]).rename(base / "unet" / "diffusion_pytorch_model.bin")


def no_vae(base: Path) -> None:
    shutil.rmtree(base / "vae")


def no_scheduler(base: Path) -> None:
    shutil.rmtree(base / "scheduler")


def no_tokenizer(base: Path) -> None:
    shutil.rmtree(base / "tokenizer")


def no_vocabulary(base: Path) -> None:
    for file in (base / "tokenizer").glob("*"):
        if file.name in ("vocab.json", "merges.txt", "tokenizer.json"):
            file.unlink()


def broken_vocabulary(base: Path) -> None:
    for file in (base / "tokenizer").glob("*.json"):
        if file.name in ("vocab.json", "tokenizer.json"):
            file.write_text("not json")


def no_index(base: Path) -> None:
    (base / "model_index.json").unlink()


def broken_index(base: Path) -> None:
    (base / "model_index.json").write_text("{")


def broken_config(base: Path) -> None:
    (base / "unet" / "config.json").write_text("not json")


def lost_weight(base: Path) -> None:
    file = base / "unet" / WEIGHTS["unet"]
    tensors = load_file(file)
    save_file({n: t.clone() for n, t in tensors.items() if n != "mid_block.resnets.0.conv1.weight"}, file)


def lost_text_weight(base: Path) -> None:
    file = base / "text_encoder" / WEIGHTS["text_encoder"]
    tensors = load_file(file)
    save_file({n: t.clone() for n, t in tensors.items() if not n.endswith("layers.1.mlp.fc1.weight")}, file)


def misshapen(base: Path) -> None:
    edit(base / "unet" / "config.json", cross_attention_dim=48)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (sdxl, "it holds a KandinskyPipeline"),
        (inpainting, "inpainting or depth base: its UNet takes 9 channels"),
        (sample_prediction, "prediction type 'sample'"),
        (odd_betas, "beta_schedule 'squaredcos_cap_v2'"),
        (truncated, r"unet/diffusion_pytorch_model.safetensors is truncated"),
        (truncated_header, r"vae/diffusion_pytorch_model.safetensors is truncated"),
        (empty_file, r"vae/diffusion_pytorch_model.safetensors is not a safetensors file"),
        (pickled, r"pickled weights only \(diffusion_pytorch_model.bin\)"),
        (no_vae, "vae/diffusion_pytorch_model.safetensors"),
        (no_scheduler, "lacks scheduler/scheduler_config.json"),
        (no_tokenizer, "lacks its vocabulary"),
        (no_vocabulary, "lacks its vocabulary"),
        (broken_vocabulary, "tokenizer.json is not JSON"),
        (no_index, "no model_index.json in it"),
        (broken_index, "model_index.json is not JSON"),
        (broken_config, "config.json is not JSON"),
        (lost_weight, "unet: 1 weights? (is|are) missing.*mid_block.resnets.0.conv1.weight"),
        (lost_text_weight, "text_encoder: 1 weights? (is|are) missing.*layers.1.mlp.fc1.weight"),
        (misshapen, "unet"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_or_foreign_base_is_refused_by_name(base: Path, damage: Callable[[Path], None], words: str) -> None:
    families.load(str(base))
    damage(base)
    found = refusal(base)
    assert re.search(words, found.problem), found.problem
    assert found.hint


def test_a_ckpt_is_refused_with_a_line_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line works as it stands: it loads weights only, and drops what is no tensor."""
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2), "step": 3}, "epoch": 1}, file)
    found = refusal(file)
    assert "pickled" in found.problem and "model.ckpt" in found.problem
    code = re.search(r'python -c "(.*)" (\S+) (\S+)$', found.hint)
    assert code and code[3].endswith("model.safetensors")
    monkeypatch.setattr(sys, "argv", ["-c", code[2], code[3]])
    exec(code[1], {})
    assert_close(load_file(code[3]), {"a": torch.ones(2)})


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@v1.0"])
def test_a_hub_id_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = refusal(name)
    assert name.partition("@")[0] in found.problem and found.hint

    def unreachable(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert name.partition("@")[0] in refusal(name).problem


@pytest.mark.parametrize("name", ["nowhere", "./not/here", "/no/such/folder", "a b/c", ""])
def test_what_is_neither_there_nor_a_hub_id_is_refused_without_asking_a_network(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def asked(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    assert refusal(name).hint


# -- what it computes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[*VARIANTS, "pocket"])
def pair(request: pytest.FixtureRequest, bases: dict[str, Path]) -> tuple[Family, StableDiffusionPipeline]:
    """Ours and stock diffusers', of the same base."""
    path = bases.get(request.param, shipped.POCKET)
    stock = StableDiffusionPipeline.from_pretrained(path).to(torch.float32)
    stock.set_progress_bar_config(disable=True)
    return families.load(str(path)), stock


def test_captions_are_encoded_as_by_the_stock_pipeline(pair: tuple[Family, StableDiffusionPipeline]) -> None:
    """Padded, cut where too long, and empty."""
    ours, stock = pair
    for caption in ("a sks mug on a table", "", "word " * 100):
        theirs, _ = stock.encode_prompt(caption, torch.device("cpu"), 1, False)
        assert_close(read(ours, [caption]).tokens, theirs, rtol=0, atol=1e-6)


def test_images_are_encoded_and_noise_predicted_as_by_the_stock_parts(
    pair: tuple[Family, StableDiffusionPipeline],
) -> None:
    ours, stock = pair
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 64, 128, generator=generator) * 2 - 1
    moments = ours.encode_images(pixels)
    with torch.no_grad():
        theirs = stock.vae.encode(pixels).latent_dist
        assert_close(tuple(moments), (theirs.mean, theirs.logvar), rtol=0, atol=1e-5)
        noise = torch.randn(theirs.mean.shape, generator=generator)
        latents = ours.latents(moments, noise)
        assert_close(latents, (theirs.mean + theirs.std * noise) * stock.vae.config.scaling_factor)
        text = read(ours, ["a", "b"])
        t = torch.tensor([3, 700])
        expected = stock.unet(latents, t, encoder_hidden_states=text.tokens).sample
        assert_close(ours.predict(latents, t, Conditioning(text)), expected, rtol=0, atol=1e-5)


def test_a_picture_is_the_stock_pipelines_picture(pair: tuple[Family, StableDiffusionPipeline]) -> None:
    ours, stock = pair
    shot = SampleRequest("a cup", seed=5, negative="a plate", steps=3, guidance=3.0, width=64, height=64)
    ours_image = Session(ours).generate(shot).image
    theirs = stock("a cup", negative_prompt="a plate", num_inference_steps=3, guidance_scale=3.0, width=64, height=64,
                   generator=torch.Generator().manual_seed(5)).images[0]  # fmt: skip
    differences = np.asarray(ours_image).astype(int) - np.asarray(theirs).astype(int)
    assert np.abs(differences).max() <= 1  # float32 sums differ with the alignment of weights in memory


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_knows_what_the_base_predicts(bases: dict[str, Path], name: str) -> None:
    pipeline = families.load(str(bases["sd21"])).pipeline(name)
    assert type(pipeline.scheduler).__name__ == SCHEDULERS[name]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_the_text_encoder_of_a_trained_family_is_the_one_the_pipeline_draws_with(bases: dict[str, Path]) -> None:
    family = families.load(str(bases["sd15"]))
    pipeline = family.pipeline()
    assert pipeline.unet is components(family)["unet"] and pipeline.text_encoder is components(family)["text_encoder"]


# -- where its weights lie --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_family_does_not_change_when_its_files_do(base: Path, dtype: torch.dtype) -> None:
    """Where dtypes agree, loaders leave tensors mapped to the file: an overwritten base would change mid-run."""
    family = families.load(str(base), dtype)
    before = {part: family.fingerprint(part) for part in WEIGHTS}
    for part, file in WEIGHTS.items():
        path = base / part / file
        size = path.stat().st_size
        with path.open("r+b") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            handle.seek(8 + length)
            handle.write(bytes(size - 8 - length))
    assert {part: family.fingerprint(part) for part in WEIGHTS} == before
    assert families.load(str(base), dtype).fingerprint("unet") != before["unet"]


def test_dtypes_are_as_asked_and_the_autoencoders_is_fp32(base: Path) -> None:
    half_files(base)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        family = families.load(str(base), dtype)
        for part, expected in (("unet", dtype), ("text_encoder", dtype), ("vae", torch.float32)):
            assert {p.dtype for p in family.parts[part].parameters()} == {expected}


def half_files(base: Path) -> None:
    for part, file in WEIGHTS.items():
        path = base / part / file
        save_file({n: t.half() for n, t in load_file(path).items()}, path, {"format": "pt"})


def test_a_fingerprint_knows_what_decides_the_output_beside_the_weights(base: Path) -> None:
    """The cache is keyed by it: other activations or another vocabulary over the same weights are another encoder."""
    before = families.load(str(base)).fingerprint("text_encoder")
    assert families.load(str(base)).fingerprint("text_encoder") == before
    edit(base / "text_encoder" / "config.json", dtype="float16", transformers_version="4.0.0")
    assert families.load(str(base)).fingerprint("text_encoder") == before
    edit(base / "text_encoder" / "config.json", hidden_act="gelu")
    other = families.load(str(base))
    assert other.fingerprint("text_encoder") != before
    other.tokenizers["text_encoder"].add_tokens(["sks"])
    assert other.fingerprint("text_encoder") != families.load(str(base)).fingerprint("text_encoder")


def test_no_safety_checker_is_made_up(base: Path) -> None:
    family = families.load(str(base))
    assert not family.has_safety_checker() and family.pipeline(safety=True).safety_checker is None


def test_a_saved_family_opens_in_stock_diffusers(bases: dict[str, Path], tmp_path: Path) -> None:
    family = families.load(str(bases["sd21"]))
    save(family, tmp_path / "saved", torch.float16)
    assert {p.dtype for p in family.parts["unet"].parameters()} == {torch.float32}
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "saved").to(torch.float32)
    kinds: list[tuple[Any, type]] = [
        (stock.unet, UNet2DConditionModel), (stock.vae, AutoencoderKL), (stock.text_encoder, CLIPTextModel)
    ]  # fmt: skip
    for (module, kind), part in zip(kinds, ("unet", "vae", "text_encoder"), strict=True):
        assert isinstance(module, kind)
        mine: dict[str, Tensor] = family.parts[part].state_dict()
        assert_close(module.state_dict(), {n: t.half().float() if t.is_floating_point() else t
                                           for n, t in mine.items()}, rtol=0, atol=0)  # fmt: skip
    assert stock.scheduler.config.prediction_type == "v_prediction"
