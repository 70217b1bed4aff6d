"""Ours against diffusers', PEFT's and torch's own: the same numbers from a loop that shares no code with us."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from support.bases import tiny_base
from support.bench import BOTH, bench
from support.photos import pictures
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.testing import assert_close
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.training.batches import Batch

STEPS = 10
DENOISER_RATE, TEXT_RATE, DECAY = 1e-3, 3e-4, 0.02
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


class Trained(NamedTuple):
    losses: list[float]
    weights: dict[str, Tensor]


def plain_loop(base: Path, given: list[list[Batch]], start: dict[str, Tensor], text: bool, gamma: float | None,
               clip: float, rank: int, alpha: float) -> Trained:  # fmt: skip
    """What a user of the libraries would write; `given` are the micro-batches of each step."""
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").requires_grad_(False)
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=ATTENTION))
    if text:
        encoder.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TEXT_ATTENTION))
    named = {f"unet.{n}": p for n, p in unet.named_parameters() if p.requires_grad}
    words = {f"text_encoder.{n}": p for n, p in encoder.named_parameters() if p.requires_grad}
    assert start.keys() == (named | words).keys()
    with torch.no_grad():
        for name, parameter in (named | words).items():
            parameter.copy_(start[name])
    groups = [{"params": list(named.values()), "lr": DENOISER_RATE}]
    groups += [{"params": list(words.values()), "lr": TEXT_RATE}] if text else []
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY, foreach=False)
    unet.train(), encoder.train()
    losses = []
    for micros in given:
        told = 0.0
        for batch in micros:
            ids = tokenizer(list(batch.captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            noisy = scheduler.add_noise(batch.latents, batch.noise, batch.t)
            predicted = unet(noisy, batch.t, encoder_hidden_states=encoder(ids)[0]).sample
            if scheduler.config.prediction_type == "epsilon":
                target = batch.noise
            else:
                target = scheduler.get_velocity(batch.latents, batch.noise, batch.t)
            loss = mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
            if gamma is not None:  # as in diffusers' examples/text_to_image/train_text_to_image.py
                snr = compute_snr(scheduler, batch.t)
                below = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
                loss = loss * (below / snr if scheduler.config.prediction_type == "epsilon" else below / (snr + 1))
            loss = loss.mean() / len(micros)
            loss.backward()
            told += loss.item()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(told)
    return Trained(losses, {n: p.detach() for n, p in (named | words).items()})


@pytest.mark.parametrize(
    ("variant", "accumulate", "text", "gamma", "clip"),
    [("sd15", 1, False, None, 0.004), ("sd21", 1, False, None, 0.005), ("sd15", 2, True, None, 0.007),
     ("sd21", 1, False, 5.0, 0.002)],
    ids=["epsilon", "v", "accumulate 2 and text encoder", "v, min-SNR"],
)  # fmt: skip
def test_ten_steps_are_those_of_a_plain_loop_on_stock_libraries(
    tmp_path: Path, variant: str, accumulate: int, text: bool, gamma: float | None, clip: float
) -> None:
    base = tiny_base(tmp_path / "base", variant)
    b = bench(
        base, pictures(tmp_path / "data"), train__steps=STEPS, train__batch=1 if text else 2,
        train__accumulate=accumulate,
        adapter__components=BOTH if text else ("denoiser",), adapter__alpha=2.0, objective__min_snr=gamma,
        data__caption_dropout=0.2, adapter__targets="attention", adapter__text_encoder_targets="attention",
        optimizer__learning_rate=DENOISER_RATE, optimizer__weight_decay=DECAY,
        optimizer__clip_norm=clip, optimizer__text_encoder_learning_rate=TEXT_RATE if text else None,
    )  # fmt: skip
    b.grow(0.02)  # at zero lora_B the first step would move half of the weights only
    start, given = b.weights(), [b.step(k) for k in range(STEPS)]
    assert [len(micros) for micros in given] == [accumulate] * STEPS
    assert any("" in batch.captions for micros in given for batch in micros)
    expected = plain_loop(base, given, start, text, gamma, clip, rank=4, alpha=2.0)
    steps = b.train()
    assert_close([s.loss for s in steps], expected.losses, rtol=0, atol=1e-5)
    assert any(s.grad_norm > clip for s in steps)  # clipping is compared as well
    assert_close(b.weights(), expected.weights, rtol=0, atol=1e-5)
    moved = [float((t - start[n]).abs().max()) for n, t in b.weights().items()]
    assert min(moved) > 1e-4
