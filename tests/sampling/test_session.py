"""Prompts to pictures: repeatable, with adapters as strong as asked, and with their recipe inside."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import GUIDANCE, STEPS, draw
from families.cases import USUAL, small_base
from PIL import Image
from support.bases import tiny_base

from finetune import cli, families
from finetune import tensors as weights
from finetune.adapters import lora
from finetune.adapters.change import AdapterState, live_name, target_shapes
from finetune.adapters.lora import Lora
from finetune.errors import InputError, VerifyError, action
from finetune.families.base import components
from finetune.families.flux import Flux
from finetune.families.sd import StableDiffusion
from finetune.families.unet import SCHEDULERS
from finetune.files import layouts
from finetune.sampling import grid
from finetune.sampling import session as session_module
from finetune.sampling.request import AdapterWeight, SampleRequest, SessionOptions
from finetune.sampling.session import Picture, Session

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


@pytest.fixture
def flux(tmp_path):
    return tiny_base(tmp_path / "flux", "flux")


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
        weights.write_tensors(layouts.universal(adapter(seed), torch.float32, "sd"), folder / f"{seed}.safetensors", {})
    return sorted(folder.glob("*.safetensors"))


SMALL = SampleRequest("a red cup", 3, "", 1, 1.0, 64, 64)


def drawn(base: str, adapters: Sequence[AdapterWeight] = (), merged: bool = False) -> np.ndarray:
    """One small picture, as numbers."""
    return pixels(adapted(base, adapters, merged).generate(SMALL))


def adapted(base: str, adapters: Sequence[AdapterWeight], merged: bool = False) -> Session:
    session = Session(families.load(base))
    session.load_adapters(adapters, merged)
    return session


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image).astype(int)


# --- repeatable ------------------------------------------------------------------------------------------------------


def test_the_same_request_is_the_same_picture_and_each_of_its_settings_matters():
    session = Session(families.load("pocket"))
    request = SampleRequest("a red apple on a blue background", 3, "", 2, 3.0, 64, 64)

    def picture(**changes) -> bytes:
        return session.generate(request._replace(**changes)).image.tobytes()

    first = picture()
    torch.randn(99)  # what else happens in the process does not matter
    assert picture() == first
    changes = {"prompt": "a star", "seed": 4, "negative": "red", "steps": 3, "guidance": 1.0, "width": 96, "height": 96}
    assert set(changes) == set(SampleRequest._fields)
    assert len({picture(**{name: value}) for name, value in changes.items()} | {first}) == len(changes) + 1


def test_generating_leaves_modules_and_random_state_as_they_were(tiny):
    family = families.load(tiny)
    session = Session(family)
    components(family)["unet"].train()
    before = [(n, m.training) for c in components(family).values() for n, m in c.named_modules()]
    dtypes = [p.dtype for c in components(family).values() for p in c.parameters()]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    session.generate(SMALL)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [(n, m.training) for c in components(family).values() for n, m in c.named_modules()] == before
    assert [p.dtype for c in components(family).values() for p in c.parameters()] == dtypes


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_makes_a_picture_with_the_bases_own_prediction(name, tiny):
    session = Session(families.load(tiny), options=SessionOptions(scheduler=name))
    assert type(session.pipeline.scheduler).__name__ == SCHEDULERS[name]
    assert session.pipeline.scheduler.config.prediction_type == "epsilon"
    assert session.generate(SMALL._replace(steps=3)).image.size == (64, 64)


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
    family = adapted(tiny, [AdapterWeight(files[0], weight)]).family
    for name, module in adapter(1).items():
        torch.testing.assert_close(change(family, name), weight * lora.delta(module), rtol=1e-4, atol=1e-5)


def test_two_adapters_add_up_with_their_weights(tiny, files):
    family = adapted(tiny, [AdapterWeight(files[0], 0.7), AdapterWeight(files[1], -0.4)]).family
    one, two = adapter(1), adapter(2)
    for name in one:
        expected = 0.7 * lora.delta(one[name]) - 0.4 * lora.delta(two[name])
        torch.testing.assert_close(change(family, name), expected, rtol=1e-4, atol=1e-5)


def test_weight_zero_is_the_base_and_other_weights_are_not(tiny, files):
    base = drawn(tiny)
    assert (drawn(tiny, [AdapterWeight(files[0], 0.0)]) == base).all()
    assert (drawn(tiny, [AdapterWeight(files[0], 1.0)]) != base).mean() > 0.01
    assert (drawn(tiny, [AdapterWeight(files[0], 1.0)]) != drawn(tiny, [AdapterWeight(files[0], 0.5)])).any()


def test_merged_is_live_and_leaves_no_adapter_behind(tiny, files):
    weighted = [AdapterWeight(files[0], 0.7), AdapterWeight(files[1], -0.4)]
    assert abs(drawn(tiny, weighted) - drawn(tiny, weighted, merged=True)).max() <= 1
    family, untouched = adapted(tiny, weighted, merged=True).family, families.load(tiny)
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
        weights.write_tensors(layouts.diffusers(modules, torch.float32), file, {})
        with pytest.raises(VerifyError, match=str(file)) as caught:
            adapted(tiny, [AdapterWeight(file)])
        assert caught.value.action == action("verify", file=file, base=tiny)


# --- opened once -----------------------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch) -> list[tuple[str, str]]:
    """(encoder, prompt) of every caption that an encoder reads."""
    seen: list[tuple[str, str]] = []
    for kind in (StableDiffusion, Flux):
        monkeypatch.setattr(kind, "encode", noted_captions(kind.encode, seen))
    return seen


def noted_captions(encode, seen):
    def noted(family, encoder, prompts):
        seen.extend((encoder, prompt.caption) for prompt in prompts)
        return encode(family, encoder, prompts)

    return noted


def test_each_prompt_is_encoded_once_by_each_encoder_and_the_large_one_is_unloaded(flux, encoded):
    session = Session.of(families.load(str(flux)), ["a cup", "a jar", "a cup", ""], CPU)
    assert "text_encoder_2" not in session.family.parts.loaded()
    for seed in (1, 2):
        for prompt in ("a cup", "a jar"):
            session.generate(SMALL._replace(prompt=prompt, seed=seed))
    assert sorted(encoded) == [(e, p) for e in ("text_encoder", "text_encoder_2") for p in ("", "a cup", "a jar")]
    session.generate(SMALL._replace(prompt="a plate"))  # not foreseen: the large encoder comes back for it
    assert ("text_encoder_2", "a plate") in encoded and len(encoded) == 8
    assert "text_encoder_2" not in session.family.parts.loaded()


def test_a_prompt_that_was_not_foreseen_makes_the_same_picture(flux):
    foreseen = Session.of(families.load(str(flux)), [SMALL.prompt, ""], CPU).generate(SMALL)
    assert Session(families.load(str(flux))).generate(SMALL).image.tobytes() == foreseen.image.tobytes()


def test_an_encoder_that_stays_reads_each_prompt_once_too(tiny, encoded):
    session = Session(families.load(tiny))
    session.generate(SMALL)
    list(
        session.generate_many([SMALL._replace(seed=seed, prompt=p) for p in (SMALL.prompt, "a jar") for seed in (1, 2)])
    )
    assert sorted(encoded) == [("text_encoder", p) for p in ("", "a jar", SMALL.prompt)]


def test_an_adapter_of_the_text_encoder_changes_prompts_that_were_read_before(tiny, files):
    session = Session(families.load(tiny))
    base = pixels(session.generate(SMALL))
    session.load_adapters([AdapterWeight(files[0])])
    assert (pixels(session.generate(SMALL)) == drawn(tiny, [AdapterWeight(files[0])])).all()
    assert (pixels(session.generate(SMALL)) != base).any()


def test_stock_diffusers_and_our_strict_reader_load_the_same_adapter(tiny, files):
    stock = Session(families.load(tiny))
    stock.load_by_diffusers(files[0])
    assert (pixels(stock.generate(SMALL)) == drawn(tiny, [AdapterWeight(files[0])])).all()


@pytest.mark.parametrize("case", USUAL, ids=lambda case: case.name)
def test_pictures_of_one_batch_are_those_made_one_by_one(case, tmp_path):
    """Of every family, with captions that its large encoder read ahead, by it and by the encoders that stay."""
    family = families.load(str(small_base(case, tmp_path / "base")))
    said = ("a cup", "a longer prompt of many words", "a cup")
    session = Session.of(family, [*said, ""], CPU)
    requests = [SMALL._replace(prompt=p, seed=s, steps=2, guidance=3.0) for s, p in enumerate(said)]
    together, alone = list(session.generate_many(requests)), [session.generate(request) for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert abs(pixels(one) - pixels(other)).max() <= 1
    for a, b in ((0, 1), (0, 2)):  # another prompt, another seed
        assert abs(pixels(together[a]) - pixels(together[b])).max() > 1
    with pytest.raises(InputError, match="differ in steps, guidance or size"):
        session.generate_together([SMALL, SMALL._replace(steps=3)])


@pytest.mark.parametrize("name", ["euler_a", "ddpm"])
def test_a_scheduler_that_draws_noise_on_the_way_draws_it_from_each_pictures_own_seed(name, tiny):
    session = Session(families.load(tiny), options=SessionOptions(scheduler=name))
    requests = [SMALL._replace(seed=seed, steps=3) for seed in (1, 2, 3)]
    for one, other in zip(session.generate_many(requests), map(session.generate, requests), strict=True):
        assert abs(pixels(one) - pixels(other)).max() <= 1


@pytest.fixture
def batches(monkeypatch) -> list[list[SampleRequest]]:
    """Every batch that sessions generate, as it comes."""
    seen, generate = [], Session.generate_together

    def noted(session, requests):
        seen.append(list(requests))
        return generate(session, requests)

    monkeypatch.setattr(Session, "generate_together", noted)
    return seen


def test_batches_hold_as_many_pixels_as_fit_in_the_order_of_the_requests(tiny, batches, monkeypatch):
    monkeypatch.setattr(session_module, "BATCH_PX", {"cpu": 3 * 64**2})
    small = [SMALL._replace(seed=seed, prompt=f"cup {seed}", negative="x" * (seed % 2)) for seed in range(4)]
    large, other = SMALL._replace(width=128, height=128), SMALL._replace(steps=2)
    asked = [*small, large, large, other, SMALL]
    pictures = Session(families.load(tiny)).generate_many(asked)
    assert not batches and next(pictures).image.size == (64, 64) and len(batches) == 1  # they come as they are made
    assert [p.image.width for p in pictures] == [64, 64, 64, 128, 128, 64, 64]
    assert batches == [small[:3], small[3:], [large], [large], [other], [SMALL]]


def test_in_a_batch_each_picture_has_its_own_word_of_the_safety_checker(safe):
    session = Session(families.load(safe), options=SessionOptions())
    checker = session.pipeline.safety_checker
    answers = iter([False, True, False])
    checker.forward = lambda images, clip_input: (images * (not (bad := next(answers))), [bad])
    made = list(session.generate_many([SMALL._replace(seed=seed) for seed in range(3)]))
    assert [p.blocked for p in made] == [False, True, False]
    assert [bool(pixels(p).any()) for p in made] == [True, False, True]


def test_the_command_generates_its_set_in_batches(tiny, tmp_path, capsys, batches):
    order = ("--base", tiny, "--steps", 1, "--size", "64x64", "--count", 2, "--out", tmp_path / "out")
    code, said = sampled(capsys, *order, "--prompt", "a cup", "--prompt", "a jar")
    assert code == 0, said
    assert [[(r.prompt, r.seed) for r in batch] for batch in batches] == [
        [("a cup", 0), ("a jar", 0), ("a cup", 1), ("a jar", 1)]
    ]


def test_the_benchmarks_pictures_are_stock_diffusers_own():
    """Drawn in batches by a session, and by the pipeline with plain prompts."""
    family = families.load("pocket")
    prompts, side = ["a red cup on a blue background", "a star"], family.facts.resolution
    made = draw(Session(family), prompts, [4, 5])
    stock = family.pipeline()(
        prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, width=side, height=side,
        generator=[torch.Generator().manual_seed(seed) for seed in (4, 5)],
    ).images  # fmt: skip
    assert all(abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1 for a, b in zip(made, stock, strict=True))


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
    hashes = [short_hash(f) for f in files]
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
        assert image.width > 3 * grid.SHOWN_PX and image.height > 2 * grid.SHOWN_PX


def short_hash(file: Path) -> str:
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
        ("--adapter", "nothing.safetensors:0.5", "no adapter file nothing.safetensors"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_a_picture_is_made(option, value, words, tiny, tmp_path, capsys):
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--out", tmp_path / "out", option, value)
    assert code == 2 and words in said and "try: " in said, said
    assert not (tmp_path / "out").exists()


def test_a_large_base_is_sampled_in_few_bits_and_its_text_encoder_is_let_go_first(flux, tmp_path, capsys, monkeypatch):
    held = []
    generate = Session.generate_together

    def watched(session, requests):
        parts = session.family.parts
        kinds = {type(m).__name__ for m in parts["transformer"].modules()}
        held.append((set(parts.loaded()), "Linear4bit" in kinds, parts["transformer"].dtype))
        return generate(session, requests)

    monkeypatch.setattr(Session, "generate_together", watched)
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
    places = target_shapes({"transformer": families.load(str(flux)).parts["transformer"]})
    generator = torch.Generator().manual_seed(0)
    changes = {
        name: Lora(torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator), 0.1)
        for name, shape in places.items() if name.endswith(("to_q", "to_v"))
    }  # fmt: skip
    weights.write_tensors(layouts.universal(changes, torch.float32, "flux"), tmp_path / "a.safetensors", {})
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
        ((flux, "--base-bits", 4, "--merged"), "4-bit weights"),
        ((flux, "--text-encoder-bits", 5), "4 or 8 bits"),
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
    for name in ("load_adapters", "generate_together"):
        monkeypatch.setattr(Session, name, noting(getattr(Session, name), seen))
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--steps", 1, "--size", "64x64", "--merged",
                         "--adapter", files[0], "--out", tmp_path / "out", "--precision", "bf16")  # fmt: skip
    assert code == 0, said
    assert seen == [torch.float32, torch.bfloat16]


def noting(method, seen):
    def noted(session, *arguments):
        seen.append(session.family.parts["unet"].dtype)
        return method(session, *arguments)

    return noted


def test_an_output_that_cannot_be_written_is_said(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code, said = sampled(capsys, "--base", tiny, "--prompt", "a cup", "--out", tmp_path / "file", "--steps", 1,
                         "--size", "64x64")  # fmt: skip
    assert code == 2 and "cannot write" in said and (tmp_path / "file").read_text() == "mine"
