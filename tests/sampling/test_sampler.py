"""Prompts to pictures: repeatable, with adapters as strong as asked, and with their recipe inside."""

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from support.bases import tiny_base

from finetune import cli, families
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.adapters import lora
from finetune.adapters.change import AdapterState, live_name, sites
from finetune.adapters.lora import Lora
from finetune.errors import VerifyError
from finetune.families.base import components
from finetune.families.unet import SCHEDULERS
from finetune.files import layouts
from finetune.sampling import sampler
from finetune.sampling.sampler import Shot, Worn

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # two adapters are meant
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "sd15", "sd15"))


@pytest.fixture(scope="module")
def safe(tmp_path_factory) -> str:
    """A base with a real safety checker, small, that finds something to blank in every picture."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    base = tiny_base(tmp_path_factory.mktemp("safe") / "sd15", "sd15")
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=small, vision_config=vision, projection_dim=4)
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)
    checker.save_pretrained(base / "safety_checker")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(base / "feature_extractor")
    return str(base)


def adapter(seed: int, rank: int = 2) -> AdapterState:
    """A strong random change of some attention projections of both components."""
    chance = torch.Generator().manual_seed(seed)
    names = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v": (32, 32),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
        "text_encoder.text_model.encoder.layers.0.self_attn.v_proj": (32, 32),
    }
    made = {}
    for name, (out, width) in names.items():
        down, up = torch.randn(rank, width, generator=chance), torch.randn(out, rank, generator=chance)
        made[name] = Lora(down, up, 0.3)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        weights.write(layouts.universal(adapter(seed), torch.float32, "sd"), folder / f"{seed}.safetensors", {})
    return sorted(folder.glob("*.safetensors"))


def drawn(base: str, worn: list[Worn] | None = None, merged: bool = False, **changes) -> np.ndarray:
    """One small picture, as numbers."""
    family = families.load(base)
    pipeline = family.pipeline()
    sampler.wear(family, pipeline, worn or [], merged)
    shot = Shot("a red cup", 3, "", 1, 1.0, 64, 64)._replace(**changes)
    return np.asarray(sampler.render(family, pipeline, shot, CPU, nullcontext).image).astype(int)


# --- repeatable ------------------------------------------------------------------------------------------------------


def test_the_same_shot_is_the_same_picture_and_each_of_its_settings_matters():
    family = families.load("pocket")
    pipeline = family.pipeline()
    shot = Shot("a red apple on a blue background", 3, "", 2, 3.0, 64, 64)

    def picture(**changes) -> bytes:
        return sampler.render(family, pipeline, shot._replace(**changes), CPU, nullcontext).image.tobytes()

    first = picture()
    torch.randn(99)  # what else happens in the process does not matter
    assert picture() == first
    changes = {"prompt": "a star", "seed": 4, "negative": "red", "steps": 3, "guidance": 1.0, "width": 96, "height": 96}
    assert set(changes) == set(Shot._fields)
    assert len({picture(**{name: value}) for name, value in changes.items()} | {first}) == len(changes) + 1


def test_rendering_leaves_modules_and_random_state_as_they_were(tiny):
    family = families.load(tiny)
    pipeline = family.pipeline()
    components(family)["unet"].train()
    before = [(n, m.training) for c in components(family).values() for n, m in c.named_modules()]
    dtypes = [p.dtype for c in components(family).values() for p in c.parameters()]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    sampler.render(family, pipeline, Shot("a cup", 1, "", 1, 1.0, 64, 64), CPU, nullcontext)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [(n, m.training) for c in components(family).values() for n, m in c.named_modules()] == before
    assert [p.dtype for c in components(family).values() for p in c.parameters()] == dtypes


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_makes_a_picture_with_the_bases_own_prediction(name, tiny):
    family = families.load(tiny)
    pipeline = family.pipeline(name)
    assert type(pipeline.scheduler).__name__ == SCHEDULERS[name]
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    image = sampler.render(family, pipeline, Shot("a cup", 1, "", 3, 1.0, 64, 64), CPU, nullcontext).image
    assert image.size == (64, 64)


# --- adapters --------------------------------------------------------------------------------------------------------


def change(family, name: str) -> torch.Tensor:
    """What the live adapters add to the output of a linear module, as a weight: W x for each unit x."""
    component = name.partition(".")[0]
    module = components(family)[component].get_submodule(
        live_name(name, dict(components(family)[component].named_modules()))
    )
    units = torch.eye(module.in_features)
    with torch.no_grad():
        plain = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        return (module(units) - plain(units)).T


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, -1.5])
def test_the_weight_scales_the_effect_exactly(weight, tiny, files):
    family = families.load(tiny)
    sampler.wear(family, family.pipeline(), [Worn(files[0], weight)], False)
    for name, module in adapter(1).items():
        torch.testing.assert_close(change(family, name), weight * lora.delta(module), rtol=1e-4, atol=1e-5)


def test_two_adapters_add_up_with_their_weights(tiny, files):
    family = families.load(tiny)
    sampler.wear(family, family.pipeline(), [Worn(files[0], 0.7), Worn(files[1], -0.4)], False)
    one, two = adapter(1), adapter(2)
    for name in one:
        expected = 0.7 * lora.delta(one[name]) - 0.4 * lora.delta(two[name])
        torch.testing.assert_close(change(family, name), expected, rtol=1e-4, atol=1e-5)


def test_weight_zero_is_the_base_and_other_weights_are_not(tiny, files):
    base = drawn(tiny)
    assert (drawn(tiny, [Worn(files[0], 0.0)]) == base).all()
    assert (drawn(tiny, [Worn(files[0], 1.0)]) != base).mean() > 0.01
    assert (drawn(tiny, [Worn(files[0], 1.0)]) != drawn(tiny, [Worn(files[0], 0.5)])).any()


def test_merged_is_live_and_leaves_no_adapter_behind(tiny, files):
    worn = [Worn(files[0], 0.7), Worn(files[1], -0.4)]
    assert abs(drawn(tiny, worn) - drawn(tiny, worn, merged=True)).max() <= 1
    family, untouched = families.load(tiny), families.load(tiny)
    sampler.wear(family, family.pipeline(), worn, True)
    assert not [n for c in components(family).values() for n, _ in c.named_parameters() if "lora" in n]
    for name in adapter(1):
        component, _, path = name.partition(".")
        path = live_name(name, dict(untouched.parts[component].named_modules()))
        moved = (components(family)[component].get_submodule(path).weight
                 - untouched.parts[component].get_submodule(path).weight)  # fmt: skip
        expected = 0.7 * lora.delta(adapter(1)[name]) - 0.4 * lora.delta(adapter(2)[name])
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_for_another_base_is_refused(tiny, tmp_path):
    wrong = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v": Lora(torch.ones(1, 7), torch.ones(7, 1), 1.0)
    }
    absent = {"unet.nowhere.to_v": Lora(torch.ones(1, 32), torch.ones(32, 1), 1.0)}
    for i, modules in enumerate((wrong, absent)):
        file = tmp_path / f"{i}.safetensors"
        weights.write(layouts.diffusers(modules, torch.float32), file, {})
        family = families.load(tiny)
        with pytest.raises(VerifyError, match=str(file)) as caught:
            sampler.wear(family, family.pipeline(), [Worn(file, 1.0)], False)
        assert "finetune verify" in caught.value.hint


# --- sheets and PNGs -------------------------------------------------------------------------------------------------


def test_a_png_carries_its_whole_recipe(tmp_path):
    facts = {**Shot("a café, 中", 7, "blurry", 9, 3.5, 64, 96).described(), "base": "pocket", "nothing": ""}
    sampler.write_png(Image.new("RGB", (64, 96)), tmp_path / "new" / "a.png", facts)
    with Image.open(tmp_path / "new" / "a.png") as image:
        text = image.text
    assert {k: text[k] for k in facts} == facts
    assert text["parameters"].startswith("a café, 中\nNegative prompt: blurry\nseed: 7, steps: 9, guidance: 3.5, ")
    assert "nothing" not in text["parameters"] and text["parameters"].endswith("base: pocket")


def test_the_labels_of_a_sheet_fit_beside_and_above_their_pictures():
    prompt = "a very long prompt about a cup " * 6 + "x" * 90
    rows = [("base", [Image.new("RGB", (64, 64), "red")] * 3), ("n" * 80, [Image.new("RGB", (64, 32), "blue")] * 3)]
    page = np.asarray(sampler.sheet(rows, [prompt, "short", ""]))
    is_text = (page < 128).all(axis=2)
    left = page.shape[1] - 3 * (sampler.SHOWN_PX + 8)
    red, blue = (page == (255, 0, 0)).all(axis=2), (page == (0, 0, 255)).all(axis=2)
    assert red.sum() >= 3 * 180**2 and blue.sum() >= 3 * 180 * 90
    top = np.argwhere(red).min(axis=0)
    assert is_text[: top[0], left : left + sampler.SHOWN_PX].any(), "the first prompt is above the first picture"
    assert not is_text[: top[0], left + sampler.SHOWN_PX : left + sampler.SHOWN_PX + 8].any(), "and ends where it ends"
    assert not is_text[top[0] :, left:].any(), "no label runs into a picture"
    assert is_text[top[0] :, :left].any() and left < 250
    font = ImageFont.load_default(13)
    lines = sampler._wrap(prompt, font, 192)
    assert all(font.getlength(line) <= 192 for line in lines) and "".join(lines).replace(" ", "") == prompt.replace(
        " ", ""
    )


def test_a_path_on_this_machine_is_not_published(tiny):
    assert shipped.public_name(tiny) == "sd15" and shipped.public_name("org/model") == "org/model"
    assert shipped.public_name("pocket") == "pocket"


# --- the command -----------------------------------------------------------------------------------------------------


def sampled(capsys, *arguments: object) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["finetune", "sample", *map(str, arguments)])
        patch.setattr(cli, "hush", lambda: None)
        cli.main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out + captured.err


def facts(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.text)


def test_the_command_makes_pictures_with_their_recipe_and_a_sheet(tiny, files, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("\ufeffa red cup\r\n\r\n  a blue cup  \r\n".encode())
    code, said = sampled(
        capsys, "--base", tiny, "--out", tmp_path / "out", "--prompts", prompts, "--prompt", "first",
        "--adapter", f"{files[0]}:0.5", "--adapter", files[1], "--negative", "blurry", "--seed", 7, "--count", 2,
        "--steps", 1, "--guidance", 2, "--scheduler", "euler", "--size", "64x72", "--merged",
    )  # fmt: skip
    assert code == 0 and "6 pictures in" in said and "sheet.png" in said
    names = [f"{n:02d}-{seed}.png" for n in range(3) for seed in (7, 8)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, "sheet.png"]
    told = facts(tmp_path / "out" / "02-8.png")
    hashes = [sampler_hash(f) for f in files]
    expected = {
        "prompt": "a blue cup", "seed": "8", "negative": "blurry", "steps": "1", "guidance": "2.0", "width": "64",
        "height": "72", "base": "sd15", "scheduler": "EulerDiscreteScheduler", "merged": "yes",
        "safety checker": "the base has none",
        "adapters": f"1.safetensors:0.5 sha256 {hashes[0]}, 2.safetensors:1 sha256 {hashes[1]}",
    }  # fmt: skip
    assert {k: told[k] for k in expected} == expected
    assert str(tmp_path) not in str(told)
    assert [facts(tmp_path / "out" / n)["prompt"] for n in names[::2]] == ["first", "a red cup", "a blue cup"]
    with Image.open(tmp_path / "out" / "02-8.png") as image:
        assert image.size == (64, 72)
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.width > 3 * sampler.SHOWN_PX and image.height > 2 * sampler.SHOWN_PX


def sampler_hash(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_a_peft_directory_is_an_adapter_too(tiny, files, tmp_path, capsys):
    layouts.write_peft(adapter(1), tmp_path / "peft", {})
    code, said = sampled(capsys, "--base", tiny, "--out", tmp_path / "out", "--prompt", "a cup", "--steps", 1,
                         "--size", "64x64", "--adapter", f"{tmp_path / 'peft'}:0.5")  # fmt: skip
    assert code == 0, said
    assert facts(tmp_path / "out" / "00-0.png")["adapters"].startswith("peft:0.5 sha256 ")


def test_the_bases_safety_checker_stays_on_unless_it_is_switched_off_and_noted(safe, tmp_path, capsys):
    order = ("--base", safe, "--prompt", "a cup", "--steps", 1, "--size", "64x64")
    code, said = sampled(capsys, *order, "--out", tmp_path / "on")
    assert code == 0 and "safety checker blanked 00-0.png" in said
    told = facts(tmp_path / "on" / "00-0.png")
    assert told["safety checker"] == "on" and told["blanked"] == "yes"
    assert not np.asarray(Image.open(tmp_path / "on" / "00-0.png")).any(), "a flagged picture is black"
    code, said = sampled(capsys, *order, "--out", tmp_path / "off", "--no-safety-checker")
    assert code == 0 and "blanked" not in said
    told = facts(tmp_path / "off" / "00-0.png")
    assert told["safety checker"] == "switched off" and "switched off" in told["parameters"]
    assert np.asarray(Image.open(tmp_path / "off" / "00-0.png")).any()
    assert facts(tmp_path / "off" / "sheet.png")["safety checker"] == "switched off"


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--size", "64", "WIDTHxHEIGHT"),
        ("--size", "ax64", "WIDTHxHEIGHT"),
        ("--size", "64x64x64", "WIDTHxHEIGHT"),
        ("--size", "64x60", "multiples of 8"),
        ("--size", "8x64", "at least 64"),
        ("--size", "-64x64", "at least 64"),
        ("--scheduler", "eular", "one of ddim, ddpm"),
        ("--text-encoder-bits", "8", "has no large text encoder"),
        ("--adapter", "nothing.safetensors:0.5", "no file nothing.safetensors"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_a_picture_is_made(option, value, words, tiny, tmp_path, capsys):
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--out", tmp_path / "out", option, value)
    assert code == 2 and words in said and "try: " in said, said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def flux(tmp_path):
    return tiny_base(tmp_path / "flux", "flux")


def test_a_large_base_is_sampled_in_few_bits_and_its_text_encoder_is_let_go_first(flux, tmp_path, capsys, monkeypatch):
    held = []
    render = sampler.render

    def watched(family, *rest):
        kinds = {type(m).__name__ for m in family.parts["transformer"].modules()}
        held.append((set(family.parts.loaded()), "Linear4bit" in kinds, family.parts["transformer"].dtype))
        return render(family, *rest)

    monkeypatch.setattr(sampler, "render", watched)
    order = ("--base", flux, "--prompt", "a cup", "--steps", 1, "--size", "64x64", "--seed", 3)
    code, said = sampled(capsys, *order, "--out", tmp_path / "few", "--precision", "bf16", "--base-bits", 4,
                         "--text-encoder-bits", 8)  # fmt: skip
    assert code == 0, said
    assert held == [({"transformer", "vae"}, True, torch.bfloat16)]
    assert facts(tmp_path / "few" / "00-3.png")["precision"] == "bf16, base in 4 bits"
    assert sampled(capsys, *order, "--out", tmp_path / "whole")[0] == 0
    assert held[1][1:] == (False, torch.float32) and facts(tmp_path / "whole" / "00-3.png")["precision"] == "fp32"
    few, whole = (np.asarray(Image.open(tmp_path / n / "00-3.png"), float) for n in ("few", "whole"))
    assert np.abs(few - whole).mean() > 0


def test_a_large_base_wears_an_adapter_in_few_bits_and_merged_in_bf16(flux, tmp_path, capsys):
    places = sites({"transformer": families.load(str(flux)).parts["transformer"]})
    generator = torch.Generator().manual_seed(0)
    changes = {
        name: Lora(torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator), 0.1)
        for name, shape in places.items() if name.endswith(("to_q", "to_v"))
    }  # fmt: skip
    weights.write(layouts.universal(changes, torch.float32, "flux"), tmp_path / "a.safetensors", {})
    order = ("--base", flux, "--prompt", "a cup", "--steps", 1, "--size", "64x64", "--precision", "bf16")
    wearing = ("--adapter", tmp_path / "a.safetensors")
    drawn = {}
    for name, more in {
        "bare": (), "live": wearing, "merged": (*wearing, "--merged"), "few": ("--base-bits", 4),
        "few live": (*wearing, "--base-bits", 4),
    }.items():  # fmt: skip
        code, said = sampled(capsys, *order, "--out", tmp_path / name, *more)
        assert code == 0, said
        drawn[name] = np.asarray(Image.open(tmp_path / name / "00-0.png"), float)

    def off(one, other):
        return np.abs(drawn[one] - drawn[other]).mean()

    change = off("live", "bare")
    assert change > 1 and off("merged", "live") < 0.2 * change
    assert 0.5 * change < off("few live", "few") < 2 * change


def test_precision_and_bits_that_cannot_be_are_refused(flux, tiny, files, tmp_path, capsys, monkeypatch):
    order = ("--prompt", "a cup", "--out", tmp_path / "out", "--base")
    for more, words in (
        ((flux, "--base-bits", 4, "--merged"), "weights of 4 bits"),
        ((flux, "--text-encoder-bits", 5), "8 or 4"),
        ((flux, "--base-bits", 8), "--base-bits 8"),
        ((tiny, "--precision", "fp16"), "--precision = fp16 needs a CUDA device"),
    ):
        code, said = sampled(capsys, *order, *more)
        assert code == 2 and words in said, said
    monkeypatch.setattr("finetune.families.find_spec", lambda _: None)
    code, said = sampled(capsys, *order, flux, "--base-bits", 4)
    assert code == 2 and "need bitsandbytes" in said and "pip install" in said
    assert not (tmp_path / "out").exists()


def test_a_merged_base_is_merged_in_float32_and_painted_in_the_precision(tiny, files, tmp_path, capsys, monkeypatch):
    seen = []
    wear, render = sampler.wear, sampler.render
    monkeypatch.setattr(sampler, "wear", lambda f, *rest: seen.append(f.parts["unet"].dtype) or wear(f, *rest))
    monkeypatch.setattr(sampler, "render", lambda f, *rest: seen.append(f.parts["unet"].dtype) or render(f, *rest))
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--steps", 1, "--size", "64x64", "--merged",
                         "--adapter", files[0], "--out", tmp_path / "out", "--precision", "bf16")  # fmt: skip
    assert code == 0, said
    assert seen == [torch.float32, torch.bfloat16]


def test_an_output_that_cannot_be_written_is_said(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--out", tmp_path / "file", "--steps", 1,
                         "--size", "64x64")  # fmt: skip
    assert code == 2 and "cannot write" in said and (tmp_path / "file").read_text() == "mine"
