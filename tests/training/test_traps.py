"""What other trainers get wrong, each with a test that fails when the trap is sprung."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from support.bases import tiny_base
from support.bench import BOTH, Bench, bench, total
from support.photos import SQUARE, WIDE, pictures
from torch import Tensor
from torch.testing import assert_close

from finetune import families
from finetune import resources as shipped
from finetune.adapters import attach as adapters
from finetune.data.images import decode
from finetune.data.images.buckets import Bucket, fit, to_array
from finetune.diffusion import chance as draws
from finetune.diffusion.process import betas, discrete
from finetune.encoding.images import PLACES
from finetune.families.base import Conditioning, Family, Moments, components, read
from finetune.files.metadata import About
from finetune.proof import applied, export
from finetune.training import checkpoint
from finetune.training.batches import Batch
from finetune.training.objective import objective


@pytest.fixture(scope="module")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "sd21", "sd21")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "six")


@pytest.fixture(scope="module")
def pocket() -> Family:
    return families.load("pocket", torch.bfloat16)


# -- weights and their precision --------------------------------------------------------------------------------------


def test_on_a_bf16_base_a_small_step_moves_grown_weights(sd15: Path, data: Path) -> None:
    """T1. bf16 weights near 0.05 lie 2.4e-4 apart: a step of 1e-4 would round to nothing."""
    b = bench(sd15, data, train__precision="bf16", train__steps=1, adapter__components=BOTH,
              optimizer__learning_rate=1e-4, optimizer__weight_decay=0.0, optimizer__epsilon=1e-20)  # fmt: skip
    assert {p.dtype for p in components(b.family)["unet"].parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in b.state.parameters} == {torch.float32}
    b.grow(0.05)
    before = b.weights()
    b.train()
    for name, after in b.weights().items():
        moved = (after - before[name]).abs()
        assert float(moved.median()) == pytest.approx(1e-4, rel=0.05), name


def test_alpha_over_rank_is_what_the_model_does_and_what_the_files_say(sd15: Path, data: Path, tmp_path: Path) -> None:
    """T15. At alpha != rank, live output = base + alpha / rank * up @ down = the exported file in stock diffusers."""
    b = bench(sd15, data, adapter__rank=4, adapter__alpha=1.0, adapter__components=BOTH, adapter__ranks={"to_q": 2})
    b.grow(0.2)
    live = adapters.read_changes(components(b.family))
    assert {(change.rank, change.scale) for change in live.values()} == {(4, 0.25), (2, 0.25)}
    noise, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])

    def output(family: Family) -> Tensor:
        with torch.no_grad():
            return family.predict(noise, t, Conditioning(read(family, ["a cup"])))

    for component in components(b.family).values():
        component.eval()
    plain = families.load(str(sd15))
    with applied.applied(plain, live):
        assert_close(output(plain), output(b.family), rtol=0, atol=1e-5)
    assert not torch.allclose(output(plain), output(b.family), atol=1e-2)
    about = About.of(b.plan.facts)
    file = export.export(live, tmp_path, "a", ("universal",), "float32", about).universal
    assert file is not None
    pipeline = plain.pipeline()
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    assert_close(output(plain), output(b.family), rtol=0, atol=1e-5)
    alphas = {float(t) for n, t in load_file(file).items() if n.endswith(".alpha")}
    assert alphas == {4.0}  # one rank, alpha == rank: readers that know no alpha do the same


def test_the_share_lost_by_merging_into_half_precision_is_told_as_measured(
    sd15: Path, data: Path, tmp_path: Path
) -> None:
    """T17. The small change of short training: much of it is lost in bf16, none in fp32."""
    b = bench(sd15, data, optimizer__learning_rate=1e-3)
    b.train()
    live = adapters.read_changes(components(b.family))
    lost = {}
    before = StableDiffusionPipeline.from_pretrained(sd15).unet.state_dict()
    for dtype in ("float32", "bfloat16"):
        told = export.merge(live, str(sd15), tmp_path / dtype, dtype).lost
        after = StableDiffusionPipeline.from_pretrained(tmp_path / dtype).unet.state_dict()
        wrong = whole = 0.0
        for name, change in live.items():
            key = f"{name.removeprefix('unet.')}.weight"
            exact = change.scale * change.up.double().flatten(1) @ change.down.double().flatten(1)
            wrong += float((after[key].double() - before[key].double() - exact).square().sum())
            whole += float(exact.square().sum())
        lost[dtype] = (wrong / whole) ** 0.5
        assert told == pytest.approx(lost[dtype], rel=1e-3, abs=1e-6)
    assert lost["bfloat16"] > 0.1 > 1e-3 > lost["float32"]


def test_the_autoencoder_computes_in_fp32_whatever_the_precision(pocket: Family) -> None:
    """T7."""
    assert {p.dtype for p in pocket.parts["vae"].parameters()} == {torch.float32}
    assert {p.dtype for p in pocket.parts["unet"].parameters()} == {torch.bfloat16}
    pixels = example_pixels()[:1]
    plain = pocket.encode_images(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        under = pocket.encode_images(pixels.bfloat16().float())
        again = pocket.encode_images(pixels)
        back = pocket.decode_latents(plain.mean)
    assert {t.dtype for t in (*plain, *under, back)} == {torch.float32}
    assert_close(tuple(again), tuple(plain), rtol=0, atol=0)
    assert_close(back, pocket.decode_latents(plain.mean), rtol=0, atol=0)


def test_latents_are_scaled_and_shifted_and_decoding_undoes_it(sd15: Path) -> None:
    """T7. Unit scale for the denoiser: (z - shift) * scale."""
    family = families.load(str(sd15))
    scale = family.parts["vae"].config.scaling_factor
    mean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    moments = Moments(mean, torch.full_like(mean, -1.0))
    drawn = mean + np.exp(-0.5) * noise
    assert_close(family.latents(moments, noise), drawn * scale)
    with torch.no_grad():
        assert_close(family.decode_latents(family.latents(moments, noise)), family.parts["vae"].decode(drawn).sample)
        family.parts["vae"].register_to_config(shift_factor=0.5)
        assert_close(family.latents(moments, noise), (drawn - 0.5) * scale)
        assert_close(family.decode_latents(family.latents(moments, noise)), family.parts["vae"].decode(drawn).sample)


def test_the_bundled_autoencoder_gives_back_the_example_pictures(pocket: Family) -> None:
    """T7. Its card says about 23 dB on its own kind of picture; these icons are new to it and measure 18.6."""
    pixels = example_pixels()
    moments = pocket.encode_images(pixels)
    back = pocket.decode_latents(pocket.latents(moments, torch.zeros_like(moments.mean))).clamp(-1, 1)
    error = (back - pixels).square().flatten(1).mean(1) / 4  # of values in [0, 1]
    assert float((-10 * error.log10()).mean()) > 18


def example_pixels() -> Tensor:
    found = sorted((shipped.EXAMPLES / "style").rglob("*.png"))[:6]
    bucket = Bucket(64, 64)
    return torch.stack([torch.from_numpy(to_array(fit(decode.open_rgb(p), bucket))) for p in found])


# -- which sample, which caption, which crop --------------------------------------------------------------------------


def shown(b: Bench) -> Iterator[tuple[Batch, list[draws.Draw]]]:
    """Every batch of the run, with what chance decides for each of its views."""
    config = b.plan.recipe
    for m in range(b.plan.micros):
        micro = b.plan.train.schedule.micro_batch(m)
        batch = b.batches.train(micro)
        drawn = []
        for name, view in zip(batch.names, micro.views, strict=True):
            drawn.append(draws.draw(config.train.seed, name, view.visit, config.data.caption_dropout, config.data.flip))
        yield batch, drawn


def encoded(b: Bench, data: Path, name: str, place: float = 0.5, flip: bool = False) -> Moments:
    """From the file itself."""
    placed = next(p for p in b.plan.train.placed if p.example.name == name)
    pixels = to_array(fit(decode.open_rgb(data / name), placed.bucket, place, flip))
    return b.family.encode_images(torch.from_numpy(pixels)[None])


def test_every_latent_keeps_its_caption_over_shuffled_epochs(sd15: Path, tmp_path: Path) -> None:
    """T3. Three epochs, two buckets: names, latents, captions and encoded text of a sample belong together."""
    data = pictures(tmp_path / "data", [SQUARE] * 5 + [WIDE] * 3)
    b = bench(sd15, data, train__epochs=3, train__batch=2)
    fresh = {p.example.name: encoded(b, data, p.example.name) for p in b.plan.train.placed}
    orders: list[str] = []
    for batch, drawn in shown(b):
        orders += batch.names
        for i, (name, chance) in enumerate(zip(batch.names, drawn, strict=True)):
            assert batch.captions[i] == (data / name).with_suffix(".txt").read_text()
            mine = b.family.latents(fresh[name], chance.latent_noise(tuple(fresh[name].mean.shape[1:]))[None])[0]
            assert_close(batch.latents[i], mine, rtol=0, atol=1e-5)
            assert_close(batch.noise[i], chance.noise(tuple(mine.shape)), rtol=0, atol=0)
            own = read(b.family, [batch.captions[i]]).tokens[0]
            assert_close(batch.text["text_encoder"].tokens[i], own, rtol=0, atol=1e-6)
    third = len(orders) // 3
    assert {*orders[:third]} == {*orders[third : 2 * third]} == {*orders[2 * third :]} == {*fresh}
    assert orders[:third] != orders[third : 2 * third] != orders[2 * third :]


def test_a_dropped_caption_is_the_encoded_empty_caption(sd15: Path, data: Path) -> None:
    """With cached text, guidance still gets its unconditional samples."""
    b = bench(sd15, data, train__epochs=6, data__caption_dropout=0.3)
    empty = read(b.family, [""]).tokens[0]
    seen = [(batch.captions, batch.text["text_encoder"].tokens) for batch, _ in shown(b)]
    pairs = [pair for captions, tokens in seen for pair in zip(captions, tokens, strict=True)]
    assert 0 < sum(not c for c, _ in pairs) < len(pairs)
    assert all(torch.allclose(t, empty, atol=1e-6) == (not c) for c, t in pairs)


def test_crops_flips_and_the_autoencoders_sample_are_drawn_at_every_visit(sd15: Path, tmp_path: Path) -> None:
    """T25. One wide picture, 40 visits: all places, both hands, no two latents alike; each latent is of its crop."""
    data = pictures(tmp_path / "data", [(180, 128)])
    b = bench(sd15, data, train__steps=40, data__crop="random", data__flip=True, data__max_aspect=1.0)
    crops, latents = [], []
    for batch, (chance,) in shown(b):
        place = int(chance.place * len(PLACES))
        crops.append((place, chance.flip))
        latents.append(batch.latents[0])
        if len(crops) <= 8:
            own = encoded(b, data, batch.names[0], PLACES[place], chance.flip)
            noise = chance.latent_noise(tuple(own.mean.shape[1:]))[None]
            assert_close(batch.latents[0], b.family.latents(own, noise)[0], rtol=0, atol=1e-5)
    assert set(crops) == {(place, flip) for place in range(5) for flip in (False, True)}
    assert all(not torch.equal(a, c) for i, a in enumerate(latents) for c in latents[:i])


# -- loss weights and targets -----------------------------------------------------------------------------------------

TABLE = ("scaled_linear", 0.00085, 0.012, 1000)


def test_the_snr_is_that_of_the_rescaled_table() -> None:
    """T8. At t = 900 and the end, where a stale SNR is many times too large."""
    plain, rescaled = (discrete(betas(*TABLE), "v", zero) for zero in (False, True))
    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                           rescale_betas_zero_snr=True, prediction_type="v_prediction")  # fmt: skip
    t = torch.arange(999)
    cumulative = theirs.alphas_cumprod[:999]
    assert_close(rescaled.snr(t), cumulative / (1 - cumulative), rtol=2e-3, atol=1e-6)
    last = torch.tensor([900, 999])
    assert_close(plain.snr(last), torch.tensor([0.0144, 0.0047]), rtol=0.02, atol=0)
    assert_close(rescaled.snr(last), torch.tensor([0.0030, 0.0]), rtol=0.02, atol=0)
    noise, x0 = torch.randn(2, 1, 4, 2, 2)
    assert torch.equal(rescaled.add_noise(x0, noise, last[1:]), noise)


def test_min_snr_weights_are_each_predictions_own() -> None:
    """T9. epsilon: min(SNR, g) / SNR; v: min(SNR, g) / (SNR + 1); arXiv:2303.09556. Finite and right at SNR = 0."""
    t = torch.arange(1000)
    for zero in (False, True):
        for gamma in (1.0, 5.0):
            epsilon, v = (discrete(betas(*TABLE), kind, zero) for kind in ("epsilon", "v"))
            snr = v.snr(t).double()
            assert_close(v.min_snr(t, gamma).double(), snr.clamp(max=gamma) / (snr + 1), rtol=1e-5, atol=0)
            limit = torch.where(snr > gamma, gamma / snr, 1.0)
            assert_close(epsilon.min_snr(t, gamma).double(), limit, rtol=1e-5, atol=0)
            assert bool(epsilon.min_snr(t, gamma).isfinite().all())
    plain, rescaled = (discrete(betas(*TABLE), "v", zero) for zero in (False, True))
    late = torch.tensor([900, 999])
    assert float(plain.min_snr(late[:1], 5.0)) == pytest.approx(0.014, abs=1e-3)  # 1.999 where "+ 1" goes astray
    assert float(rescaled.min_snr(late[1:], 5.0)) == 0.0


def test_min_snr_weighs_each_sample_by_its_own_timestep(sd15: Path, data: Path) -> None:
    """T9, in the objective."""
    b = bench(sd15, data, train__batch=6, objective__min_snr=1.0)
    (batch,) = b.step()
    weighted, _ = objective(b.family, batch, b.plan.recipe)
    off = bench(sd15, data, train__batch=6)
    bare, _ = objective(off.family, batch, off.plan.recipe)
    assert_close(weighted, bare * b.family.process.min_snr(batch.t, 1.0))
    assert len(set((weighted / bare).tolist())) > 1


def test_the_v_target_is_made_of_latents(sd21: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T10. A denoiser that gives diffusers' velocity of the latents has no loss; one that gives noise has."""
    b = bench(sd21, data, train__batch=4)
    (batch,) = b.step()
    velocity = DDPMScheduler.from_pretrained(sd21, subfolder="scheduler").get_velocity(
        batch.latents, batch.noise, batch.t
    )
    monkeypatch.setattr(b.family, "predict", lambda noisy, t, given: velocity)
    assert float(objective(b.family, batch, b.plan.recipe)[0].detach().max()) < 1e-9
    monkeypatch.setattr(b.family, "predict", lambda noisy, t, given: batch.noise)
    assert float(objective(b.family, batch, b.plan.recipe)[0].min()) > 1e-3


def test_the_loss_is_computed_in_fp32_under_bf16_autocast(
    sd15: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T26. Noised input, target, difference and mean; each sample reduced before any weight."""
    b = bench(sd15, data, train__precision="bf16", train__batch=2)
    (batch,) = b.step()
    assert batch.latents.dtype == batch.noise.dtype == torch.float32
    seen: list[Tensor] = []

    def predict(noisy: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        output = original(noisy, t, given)
        seen.extend([noisy, output.detach()])
        return output

    original = b.family.predict
    monkeypatch.setattr(b.family, "predict", predict)
    with b.machine.autocast():
        losses, _ = objective(b.family, batch, b.plan.recipe)
    noisy, output = seen
    theirs = DDPMScheduler.from_pretrained(sd15, subfolder="scheduler")
    assert output.dtype == torch.bfloat16 and noisy.dtype == losses.dtype == torch.float32
    assert_close(noisy, theirs.add_noise(batch.latents, batch.noise, batch.t), rtol=0, atol=1e-5)
    exact = (output.double() - batch.noise.double()).square().mean(dim=(1, 2, 3))
    assert_close(losses.detach().double(), exact, rtol=1e-6, atol=0)


# -- gradients, losses, resuming --------------------------------------------------------------------------------------


def test_only_trained_weights_have_gradients_and_are_clipped(sd15: Path, data: Path) -> None:
    """T18. With gradient checkpointing, where others let the embeddings ask for gradients."""
    b = bench(sd15, data, train__gradient_checkpointing=True, adapter__components=BOTH, train__steps=1,
              optimizer__clip_norm=1e-3)  # fmt: skip
    b.grow(0.2)
    bare = b.gradients()
    (step,) = b.train()
    trained = {id(p) for p in b.state.parameters}
    for component in components(b.family).values():
        for name, parameter in component.named_parameters():
            assert parameter.requires_grad == (id(parameter) in trained) == ("lora_" in name)
            assert (parameter.grad is not None) == (id(parameter) in trained), name
    assert step.grad_norm == pytest.approx(total(bare), rel=1e-5)
    assert step.grad_norm > 1e-3
    clipped = {n: p.grad for n, p in b.named().items() if p.grad is not None}
    assert total(clipped) == pytest.approx(1e-3, rel=1e-4)
    for name, gradient in clipped.items():  # one factor for all, so that the direction stays
        assert_close(gradient, bare[name] * (1e-3 / total(bare)), rtol=1e-3, atol=1e-10)


def test_four_batches_of_one_are_one_batch_of_four(sd15: Path, tmp_path: Path) -> None:
    """T19. The same samples at the same visits, the same gradients, losses and steps."""
    data = pictures(tmp_path / "data", [SQUARE] * 4)
    runs = [bench(sd15, data, train__batch=4 // n, train__accumulate=n, train__steps=2) for n in (1, 4)]
    seen = [sorted(name for batch in b.step() for name in batch.names) for b in runs]
    assert seen[0] == seen[1]
    for b in runs:
        b.grow()
    gradients = [b.gradients() for b in runs]
    assert_close(*gradients, rtol=1e-3, atol=1e-8)
    assert_close(*([s.loss for s in b.train()] for b in runs), rtol=1e-5, atol=1e-6)


def test_a_short_last_group_is_divided_by_what_it_holds(sd15: Path, tmp_path: Path) -> None:
    """T19. 6 batches, 4 a step: the second step has 2, and weighs each a half; so does the loss (T20)."""
    data = pictures(tmp_path / "data", [SQUARE] * 6)
    b = bench(sd15, data, train__epochs=1, train__accumulate=4)
    b.grow()
    assert [len(b.step(k)) for k in range(b.plan.steps)] == [4, 2]
    for k, n in ((0, 4), (1, 2)):
        found = b.gradients(k)
        expected = {name: torch.zeros_like(g) for name, g in found.items()}
        for batch in b.step(k):
            b.state.optimizer.zero_grad()
            (objective(b.family, batch, b.plan.recipe)[0].mean() / n).backward()
            for name, p in b.named().items():
                expected[name] += p.grad
        assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_the_logged_loss_is_the_mean_over_all_samples_of_the_step(sd15: Path, tmp_path: Path) -> None:
    """T20. Not the last micro-batch's; buckets of different sizes weigh by samples."""
    data = pictures(tmp_path / "data", [SQUARE] * 3 + [WIDE] * 3)
    b = bench(sd15, data, train__epochs=2, train__batch=2, train__accumulate=3)
    steps = b.steps()
    for k in range(b.plan.steps):
        with torch.no_grad():
            losses = torch.cat([objective(b.family, batch, b.plan.recipe)[0] for batch in b.step(k)])
        assert losses.std() > 1e-3
        assert next(steps).loss == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_checkpoint_carries_step_scale_and_moments_and_the_rate_goes_on(
    sd15: Path, data: Path, tmp_path: Path
) -> None:
    """T22. The schedule and the fp16 scale continue where they were, not from their beginnings."""
    changes = {"train__steps": 6, "optimizer__schedule": "cosine", "optimizer__warmup_steps": 2}  # fmt: skip
    whole = bench(sd15, data, **changes)
    straight = whole.train()
    first = bench(sd15, data, **changes)
    first.train(3)
    first.state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    first.state.scaler.scale(torch.ones(()))
    path = checkpoint.save_checkpoint(tmp_path, first.state, {}, keep_last=1)
    assert json.loads((path / "state.json").read_text())["step"] == 3
    second = bench(sd15, data, **changes)
    second.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    checkpoint.load_checkpoint(found, second.state)
    assert second.state.step == 3 and second.state.scaler.get_scale() == 1024.0
    second.state.scaler = None
    rest = second.train()
    assert [s.number for s in rest] == [4, 5, 6]
    assert [s.rates for s in rest] == [s.rates for s in straight[3:]]
    assert len({s.rates["unet"] for s in straight}) == 4
    assert [s.loss for s in rest] == [s.loss for s in straight[3:]]
    assert_close(second.weights(), whole.weights(), rtol=0, atol=0)
