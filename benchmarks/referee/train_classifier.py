"""Trains the referee on renders made as it goes.

    python benchmarks/referee/train_classifier.py benchmarks/referee/classifier.safetensors

Unlike the base it sees every object on every colour, held-out pairs too, for it has to judge just those. Pictures are
worn as a small diffusion model wears them: bent, soft, spotty, off in colour.
"""

import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "data"), str(ROOT / "benchmarks")]

import icons  # noqa: E402
import styles  # noqa: E402

from referee.classifier import HEADS, SIDE_PX, Classifier, Network  # noqa: E402

COMMAND = "python benchmarks/referee/train_classifier.py benchmarks/referee/classifier.safetensors"
NAMES = {
    "objects": tuple(icons.OBJECTS), "background": tuple(icons.COLOURS), "ground": ("plain", *icons.PATTERNS),
    "style": ("plain", *styles.BRANDS, "other"),
}  # fmt: skip
BATCH = 64
PEAK = 3e-3


class Example(NamedTuple):
    pixels: icons.Pixels
    objects: tuple[str, ...]
    background: str
    """nearest name of a plain ground's colour"""
    ground: str
    style: str
    side: float
    """of the largest object, in shares of the picture's"""


def main(
    out: Path,
    steps: Annotated[int, typer.Option(help="of 64 pictures")] = 5000,
    autoencoder: Annotated[Path | None, typer.Option(help="measure what it brings back, too")] = None,
) -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    network = Network([len(NAMES[head]) for head in HEADS]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    test = [example("referee test", number) for number in range(2000)]
    test_pictures = [Image.fromarray(one.pixels) for one in test]
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min((step + 1) / 200, 1 - step / steps)
        shown = [example("referee", step * BATCH + i) for i in range(BATCH)]
        with torch.autocast("cpu", torch.bfloat16):
            seen = network(worn(tensor(shown), step).contiguous(memory_format=torch.channels_last))
        loss = objective([part.float() for part in seen], shown)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            found = accuracy(Classifier(network, NAMES), test_pictures, test)
            network.train()
            keep(network, out, found)
            typer.echo(f"{step + 1} steps, {time.monotonic() - began:.0f} s, loss {loss:.3f}: {written(found)}")
    if autoencoder:
        found = accuracy(Classifier(network, NAMES), brought_back(test_pictures, autoencoder), test)
        typer.echo(f"through the autoencoder: {written(found)}")


def example(seed: str, number: int, style: str | None = None) -> Example:
    """The number-th picture: nearly half of them as the base's training has them but with more pairs, else flat."""
    chance = random.Random(f"{seed}/{number}/style")
    style = style or chance.choices(NAMES["style"], (44, 20, 12, 24))[0]
    if style == "plain":
        wanted = chance.choices((1, 2), (55, 45))[0]
        drawn = (icons.scene(f"{seed}/{number}", attempt) for attempt in itertools.count())
        scene = next(one for one in drawn if len(one.objects) == wanted)
        colours = tuple(chance.sample(list(icons.COLOURS), len(scene.ground.colours)))
        scene = scene._replace(ground=scene.ground._replace(colours=colours))
        shown = icons.render(scene, SIDE_PX)
        names, side = tuple(placed.name for placed in scene.objects), max(placed.side for placed in scene.objects)
        return Example(shown, names, colours[0], scene.ground.kind, style, side)
    side, brand = chance.uniform(0.45, 0.95), styles.BRANDS.get(style) or styles.any_brand(f"{seed}/{number}")
    x, y = (chance.uniform(side / 2, 1 - side / 2) for _ in range(2))
    placed = icons.Placed(chance.choice(NAMES["objects"]), side, x, y)
    return Example(
        styles.stylised(placed, brand, SIDE_PX), (placed.name,), icons.nearest(brand.ground), "plain", style, side
    )


def tensor(shown: list[Example]) -> Tensor:
    """(b, 3, h, w) in [-1, 1]"""
    drawn = np.stack([one.pixels for one in shown])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def worn(shown: Tensor, step: int) -> Tensor:
    """Bent a little, softened, spotted and tinted, each picture in its own measure."""
    chance = torch.Generator().manual_seed(step)
    b, _, h, _ = shown.shape

    def share(*shape: int) -> Tensor:
        """Of each picture, 0 to 1, and half of the time 0."""
        return (2 * torch.rand(b, *shape, generator=chance) - 1).clamp(min=0)

    def clouds(channels: int, cells: int) -> Tensor:
        coarse = torch.randn(b, channels, cells, cells, generator=chance)
        return F.interpolate(coarse, size=(h, h), mode="bicubic", align_corners=False)

    bend = 0.05 * share(1, 1, 1) * clouds(2, 4) + 0.02 * share(1, 1, 1) * clouds(2, 10)
    turn = torch.eye(2, 3) + 0.08 * share(1, 1) * torch.randn(b, 2, 3, generator=chance)
    grid = F.affine_grid(turn, [b, 3, h, h], align_corners=False) + bend.permute(0, 2, 3, 1)
    shown = F.grid_sample(shown, grid, padding_mode="border", align_corners=False)
    for factor in (2, 4):
        soft = F.interpolate(F.avg_pool2d(shown, factor), size=(h, h), mode="bicubic", align_corners=False)
        shown = torch.lerp(shown, soft, share(1, 1, 1) * 2 / factor)
    shown = shown + 0.15 * share(1, 1, 1) * torch.randn(shown.shape, generator=chance)
    shown = shown + 0.12 * share(1, 1, 1) * clouds(3, 16)
    return (shown * (1 - 0.2 * share(1, 1, 1)) + 0.08 * torch.randn(b, 3, 1, 1, generator=chance)).clamp(-1, 1)


def objective(seen: list[Tensor], shown: list[Example]) -> Tensor:
    """Objects: shown or not, each by itself, and the shown before all others. The rest: one of each."""
    objects, background, ground, style = seen
    wanted = torch.zeros_like(objects)
    for row, one in enumerate(shown):
        for name in one.objects:
            wanted[row, NAMES["objects"].index(name)] = 1
    plain = [row for row, one in enumerate(shown) if one.ground == "plain"]
    return (
        F.cross_entropy(objects, wanted / wanted.sum(1, keepdim=True))
        + F.binary_cross_entropy_with_logits(objects, wanted, reduction="sum") / len(shown)
        + F.cross_entropy(background[plain], answers(shown, "background")[plain])
        + F.cross_entropy(ground, answers(shown, "ground"))
        + F.cross_entropy(style, answers(shown, "style"))
    )


def answers(shown: list[Example], head: str) -> Tensor:
    return torch.tensor([NAMES[head].index(getattr(one, head)) for one in shown])


def accuracy(classifier: Classifier, pictures: list[Image.Image], shown: list[Example]) -> dict[str, float]:
    """Share of right verdicts; with two objects both must lead."""
    hits: dict[str, list[bool]] = {}
    for one, verdict in zip(shown, classifier.judge(pictures), strict=True):
        leading = verdict.objects[: len(one.objects)]
        size = "two" if len(one.objects) == 2 else "small" if one.side < 0.4 else "one"
        hits.setdefault(size if one.style == "plain" else one.style, []).append(set(leading) == set(one.objects))
        hits.setdefault("style", []).append(verdict.style == one.style)
        hits.setdefault("ground", []).append(verdict.ground == one.ground)
        if one.style == one.ground == "plain":
            hits.setdefault("background", []).append(verdict.background == one.background)
    return {name: sum(found) / len(found) for name, found in sorted(hits.items())}


def written(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in found.items())


def brought_back(pictures: list[Image.Image], folder: Path) -> list[Image.Image]:
    """What the autoencoder makes of them."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder)
    back: list[Image.Image] = []
    with torch.no_grad():
        for shown in torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2).split(50):
            decoded = vae.decode(vae.encode(shown / 127.5 - 1).latent_dist.mode()).sample.clamp(-1, 1)
            painted = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            back += [Image.fromarray(one) for one in painted]
    return back


def keep(network: Network, out: Path, found: dict[str, float]) -> None:
    weights = {k: v.half().contiguous() for k, v in network.state_dict().items() if v.is_floating_point()}
    said = {"made_by": COMMAND, "names": json.dumps(NAMES), "accuracy": json.dumps(found)}
    save_file(weights, out, metadata=said)


if __name__ == "__main__":
    typer.run(main)
