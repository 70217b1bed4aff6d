"""Our training step beside the bare one and beside a plain loop, on the pocket base, in one run.

    python benchmarks/step.py [--rounds 15] [--compile]

bare   forward, backward, clip and fused AdamW on fixed tensors: what no trainer can undercut
ours   finetune's step, cache warm
plain  a loop of the shape of diffusers' DreamBooth example: opens pictures, autoencoder and text encoder in it
lean   the same with pixels and token ids at hand and a fused AdamW

They take turns, so that a machine's drift falls on all of them; ratios are medians over the rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

from finetune import recipe
from finetune.cli import hush
from finetune.families.base import components
from finetune.planning import plan as planning
from finetune.training import loop as trainer
from finetune.training.begin import begin

SETS = ['prior.mode="off"', "train.batch=4", "train.steps=100000", "adapter.rank=8", 'adapter.components=["denoiser"]',
        'adapter.targets="attention"', "train.precision=fp32"]  # fmt: skip
LIMITS = {"ours / bare": 1.05, "ours / plain": 0.87}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--steps", type=int, default=5, help="a round, of each")
    arguments.add_argument("--compile", action="store_true", help="compile ours, and see when it pays")
    said = arguments.parse_args()
    hush()
    with tempfile.TemporaryDirectory() as folder:
        loops: dict[str, Iterator[object]] = {"bare": bare(Path(folder)), "ours": ours(Path(folder), False)}
        loops |= {"plain": plain(Path(folder)), "lean": plain(Path(folder), from_disk=False)}
        if said.compile:
            began = time.perf_counter()
            loops["compiled"] = ours(Path(folder), True)
            next(loops["compiled"])
            say(f"compiling took {time.perf_counter() - began:.0f} s")
        for loop in loops.values():
            next(loop), next(loop)
        report(times(loops, said.rounds, said.steps))


def times(loops: dict[str, Iterator[object]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each, by round; the order turns with the round."""
    found: dict[str, list[float]] = {name: [] for name in loops}
    names = list(loops)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            began = time.perf_counter()
            for _ in range(steps):
                next(loops[name])
            found[name].append((time.perf_counter() - began) / steps)
    return found


def report(found: dict[str, list[float]]) -> None:
    for name, seconds in found.items():
        say(f"{name:<9} {1 / statistics.median(seconds):6.2f} it/s   {statistics.median(seconds) * 1e3:7.1f} ms")
    pairs = [("ours", "bare"), ("ours", "plain"), ("ours", "lean"), ("compiled", "ours")]
    for a, b in pairs:
        if a in found:
            ratios = [x / y for x, y in zip(found[a], found[b], strict=True)]
            limit = LIMITS.get(f"{a} / {b}")
            verdict = (
                "" if limit is None else f"   at most {limit}: {'yes' if statistics.median(ratios) <= limit else 'NO'}"
            )
            say(f"{a} / {b}: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}){verdict}")


class Prepared:
    """A run up to its loop."""

    def __init__(self, folder: Path, compiled: bool) -> None:
        sets = [*SETS, f"data.cache={folder / 'cache'}", f"train.compile={str(compiled).lower()}"]
        self.plan = planning.resolve_plan(recipe.load(Path("pocket-product"), sets))
        run = begin(self.plan)
        self.family, self.made, self.state, self.machine = run.family, run.data, run.state, run.device

    def parameters(self) -> list[nn.Parameter]:
        return self.state.parameters


def ours(folder: Path, compiled: bool) -> Iterator[object]:
    p = Prepared(folder, compiled)
    return trainer.train(p.state, p.made.batches, p.plan.recipe, p.machine)


def bare(folder: Path) -> Iterator[object]:
    p = Prepared(folder, False)
    batch = p.made.batches.train(p.plan.train.schedule.micro_batch(0))
    noisy = p.family.process.add_noise(batch.latents, batch.noise, batch.t)
    target = p.family.process.target(batch.latents, batch.noise, batch.t)
    tokens = batch.text["text_encoder"].tokens
    unet: Any = components(p.family)["unet"]
    return _loop(p.parameters(), lambda: F.mse_loss(unet(noisy, batch.t, tokens, return_dict=False)[0], target))


def plain(folder: Path, from_disk: bool = True) -> Iterator[object]:
    """As diffusers' DreamBooth example by default: each step opens its pictures, tokenizes, encodes both, and its AdamW
    is not fused. `from_disk=False` has pixels and token ids at hand and a fused AdamW.
    """
    from diffusers import DDPMScheduler

    p = Prepared(folder, False)
    pipe = p.family.pipeline()
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    placed = p.plan.train.placed
    size = pipe.tokenizer.model_max_length

    def pixels(i: int) -> torch.Tensor:
        image = ImageOps.exif_transpose(Image.open(placed[i].example.path)).convert("RGB")
        array = np.asarray(image.resize(placed[i].bucket, Image.Resampling.BILINEAR), dtype=np.float32)
        return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)

    def tokens(i: int) -> torch.Tensor:
        padded = {"padding": "max_length", "truncation": True, "max_length": size, "return_tensors": "pt"}
        ids: torch.Tensor = pipe.tokenizer(placed[i].example.caption, **padded).input_ids[0]
        return ids

    ready = [(pixels(i), tokens(i)) for i in range(len(placed))]

    def loss() -> torch.Tensor:
        chosen = torch.randperm(len(placed))[:4].tolist()
        loaded = [(pixels(i), tokens(i)) if from_disk else ready[i] for i in chosen]
        pictures, ids = (torch.stack(list(part)) for part in zip(*loaded, strict=True))
        with torch.no_grad():
            latents = pipe.vae.encode(pictures).latent_dist.sample() * pipe.vae.config.scaling_factor
            text = pipe.text_encoder(ids)[0]
        noise = torch.randn_like(latents)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (4,))
        output = pipe.unet(scheduler.add_noise(latents, noise, t), t, text, return_dict=False)[0]
        return F.mse_loss(output.float(), scheduler.get_velocity(latents, noise, t).float())

    return _loop(p.parameters(), loss, fused=not from_disk)


def _loop(parameters: list[nn.Parameter], loss: Callable[[], torch.Tensor], fused: bool = True) -> Iterator[object]:
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=fused)
    while True:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield value.item()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
