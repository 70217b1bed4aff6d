"""Prompts to pictures: repeatable, with adapters as strong as asked, and with their recipe inside."""

import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from drawn import GUIDANCE, STEPS, draw
from families.cases import USUAL, small_base
from support.adapters import small_adapter

from finetune import families
from finetune import tensors as weights
from finetune.adapters import lora
from finetune.adapters.change import live_name
from finetune.adapters.lora import Lora
from finetune.errors import InputError, VerifyError, action
from finetune.families.base import components
from finetune.families.flux import Flux
from finetune.families.sd import StableDiffusion
from finetune.families.unet import SCHEDULERS
from finetune.files import layouts
from finetune.sampling import session as session_module
from finetune.sampling.request import AdapterWeight, SampleRequest, SampleSet, SessionOptions
from finetune.sampling.session import Picture, Session, check_options

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # two adapters are meant
]
CPU = torch.device("cpu")


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
    for name, module in small_adapter(1).items():
        torch.testing.assert_close(change(family, name), weight * lora.delta(module), rtol=1e-4, atol=1e-5)


def test_two_adapters_add_up_with_their_weights(tiny, files):
    family = adapted(tiny, [AdapterWeight(files[0], 0.7), AdapterWeight(files[1], -0.4)]).family
    one, two = small_adapter(1), small_adapter(2)
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
    for name in small_adapter(1):
        component, _, path = name.partition(".")
        path = live_name(name, dict(untouched.parts[component].named_modules()))
        moved = (components(family)[component].get_submodule(path).weight
                 - untouched.parts[component].get_submodule(path).weight)  # fmt: skip
        expected = 0.7 * lora.delta(small_adapter(1)[name]) - 0.4 * lora.delta(small_adapter(2)[name])
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


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_schedulers_for_few_steps_are_told_what_they_need(name, tiny):
    info, few = families.detect(tiny), families.family_class("sd").few_steps[name]
    [[asked]] = SampleSet(["a cup"]).requests(info, few)
    assert (asked.steps, asked.guidance) == (8, 1.0)
    session = Session(families.load(tiny), options=SessionOptions(scheduler=name))
    stepped, own = [], session.pipeline.scheduler.step
    session.pipeline.scheduler.step = functools.wraps(own)(lambda *a, **kw: stepped.append(kw) or own(*a, **kw))
    assert pixels(session.generate(SMALL._replace(steps=4))).std() > 1
    assert len(stepped) == 4 and {kw.get("eta") for kw in stepped} == {0.3 if name == "tcd" else None}
    with pytest.raises(InputError, match="takes at most 50"):
        SampleSet(["a cup"], steps=51).requests(info, few)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_few_step_schedulers_are_refused_on_a_flow_in_a_sentence(name):
    info = families.detect("pocket")._replace(family="flux")
    with pytest.raises(InputError, match="this one is a flow"):
        check_options("mine", info, SessionOptions(scheduler=name))
