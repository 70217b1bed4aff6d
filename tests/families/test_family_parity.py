"""Each family against a plain loop on stock diffusers: the same loss and the same gradients."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FluxPipeline, QwenImagePipeline
from families.cases import CASES, Case, small_base
from peft import LoraConfig
from support.bench import Bench, bench
from support.photos import SQUARE, pictures
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from finetune.proof.applied import difference
from finetune.training import loop as trainer
from finetune.training.batches import Batch

Reference = Callable[[Any, Batch], tuple[Tensor, Tensor]]
"""(stock pipeline, batch) -> prediction and target"""


def sdxl(pipe: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    tokens, _, pooled, _ = pipe.encode_prompt(list(batch.captions), do_classifier_free_guidance=False)
    ids = [pipe._get_add_time_ids((h, w), (top, left), (high, wide), torch.float32, 48)
           for h, w, top, left, high, wide in batch.size.tolist()]  # fmt: skip
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.t)
    told = {"text_embeds": pooled, "time_ids": torch.cat(ids)}
    predicted = pipe.unet(noisy, batch.t, encoder_hidden_states=tokens, added_cond_kwargs=told).sample
    v = scheduler.config.prediction_type == "v_prediction"
    return predicted, scheduler.get_velocity(batch.latents, batch.noise, batch.t) if v else batch.noise


def sd3(pipe: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    tokens, _, pooled, _ = pipe.encode_prompt(list(batch.captions), None, None, do_classifier_free_guidance=False)
    sigma = batch.t.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * batch.latents + sigma * batch.noise
    predicted = pipe.transformer(noisy, tokens, pooled, batch.t * pipe.scheduler.config.num_train_timesteps).sample
    return predicted, batch.noise - batch.latents


def flux(pipe: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    tokens, pooled, text_ids = pipe.encode_prompt(list(batch.captions), max_sequence_length=_t5_length(pipe))
    b, c, h, w = batch.latents.shape
    sigma = batch.t.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * batch.latents + sigma * batch.noise
    packed = FluxPipeline._pack_latents(noisy, b, c, h, w)
    places = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, noisy.device, noisy.dtype)
    guided = pipe.transformer.config.guidance_embeds
    predicted = pipe.transformer(
        packed, tokens, pooled, batch.t, places, text_ids, guidance=torch.ones(b) if guided else None
    ).sample
    return FluxPipeline._unpack_latents(predicted, h * 8, w * 8, 8), batch.noise - batch.latents


def zimage(pipe: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    tokens, _ = pipe.encode_prompt(list(batch.captions), do_classifier_free_guidance=False)
    sigma = batch.t.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * batch.latents + sigma * batch.noise
    # as its pipeline calls it: time runs from noise to clean, and the sign is turned
    timestep = (1000 - 1000 * batch.t) / 1000
    made = pipe.transformer(list(noisy.unsqueeze(2).unbind(0)), timestep, tokens, return_dict=False)[0]
    return -torch.stack(list(made)).squeeze(2), batch.noise - batch.latents


def qwen(pipe: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    tokens, mask = pipe.encode_prompt(list(batch.captions))
    b, c, h, w = batch.latents.shape
    sigma = batch.t.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * batch.latents + sigma * batch.noise
    packed = QwenImagePipeline._pack_latents(noisy.unsqueeze(2), b, c, h, w)
    predicted = pipe.transformer(packed, tokens, mask, batch.t, [[(1, h // 2, w // 2)]] * b).sample
    return QwenImagePipeline._unpack_latents(predicted, h * 8, w * 8, 8).squeeze(2), batch.noise - batch.latents


def klein(pipe: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    tokens, text_ids = pipe.encode_prompt(list(batch.captions))
    sigma = batch.t.view(-1, 1, 1, 1)
    noisy = pipe._patchify_latents((1 - sigma) * batch.latents + sigma * batch.noise)
    places = pipe._prepare_latent_ids(noisy)
    predicted = pipe.transformer(pipe._pack_latents(noisy), tokens, batch.t, places, text_ids).sample
    patches = pipe._unpack_latents_with_ids(predicted, places)
    return pipe._unpatchify_latents(patches), batch.noise - batch.latents


def _t5_length(pipe: Any) -> int:
    return 512 if pipe.transformer.config.guidance_embeds else 256


REFERENCES: dict[str, Reference] = {
    "sdxl": sdxl, "sd3": sd3, "flux": flux, "zimage": zimage, "qwen_image": qwen, "flux2": klein,
}  # fmt: skip
COMPARED = [case for case in CASES if case.family != "sd"]  # that one is compared in tests/test_parity.py


@pytest.mark.parametrize("case", COMPARED, ids=[case.name for case in COMPARED])
def test_loss_and_gradients_are_those_of_a_plain_loop_on_stock_diffusers(case: Case, tmp_path: Path) -> None:
    base = small_base(case, tmp_path / "base")
    data = pictures(tmp_path / "data", [SQUARE] * 3 + [(180, 128)] * 3)
    b = bench(base, data, train__batch=2, train__steps=3, adapter__targets="attention+ff", adapter__alpha=2.0,
              data__caption_dropout=0.3, data__crop="random", data__flip=True, data__max_aspect=1.5,
              objective__distilled=True)  # fmt: skip
    b.grow(0.05)
    pipe, trained = stock(base, b)
    for given in steps(b):
        ours, gradients = loss_and_gradients(b)
        theirs, expected = plain(pipe, trained, given, REFERENCES[case.family])
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-9)
        both = (torch.cat([g[name].flatten().double() for name in gradients]) for g in (gradients, expected))
        assert difference(*both) < 1e-5
        b.state.step += 1


def steps(b: Bench) -> Iterator[Batch]:
    for k in range(b.plan.steps):
        (batch,) = b.step(k)
        yield batch


def loss_and_gradients(b: Bench) -> tuple[float, dict[str, Tensor]]:
    share = b.batches.step(b.state.step, b.machine.ranks)
    loss = float(trainer.accumulate(b.state, share, b.plan.recipe, b.machine)[0])
    return loss, {n: p.grad.clone() for n, p in b.named().items() if p.grad is not None}


def stock(base: Path, b: Bench) -> tuple[Any, dict[str, Tensor]]:
    """The pipeline with an adapter on it as a user of the libraries would put it there, and its trained weights."""
    pipe: Any = DiffusionPipeline.from_pretrained(base)
    name = b.family.denoiser_name
    denoiser = getattr(pipe, name).requires_grad_(False)
    targets = sorted({n.partition(".")[2].partition(".lora_")[0] for n in b.named()})
    denoiser.add_adapter(LoraConfig(r=4, lora_alpha=2.0, target_modules=targets))
    trained = {f"{name}.{n}": p for n, p in denoiser.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for key, value in b.named().items():
            trained[key].copy_(value)
    denoiser.train()
    return pipe, trained


def plain(pipe: Any, trained: dict[str, Tensor], batch: Batch, reference: Reference) -> tuple[float, dict[str, Tensor]]:
    """What a user of the libraries would write."""
    for p in trained.values():
        p.grad = None
    predicted, target = reference(pipe, batch)
    loss = mse_loss(predicted, target)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in trained.items() if p.grad is not None}
