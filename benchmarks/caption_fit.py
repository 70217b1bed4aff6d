"""At which noise levels, and against how many captions, does a base tell captions from mixed-up ones?

    python benchmarks/caption_fit.py        half a minute; the share of images whose own caption fits best

Each row is a choice of levels and rivals: the share with the true captions, and with four permutations of them, each
over what chance would give. `evaluation.effect` uses one of these rows.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import typer

from finetune import recipe
from finetune.cli import hush
from finetune.data.dataset import Placed
from finetune.evaluation import effect
from finetune.events import unheard
from finetune.machine import open_machine
from finetune.planning import plan as planning
from finetune.training.begin import encode_dataset, open_base

RECIPES = ("pocket-product", "pocket-style")
LEVELS = ((0.3, 0.5, 0.7, 0.9), (0.3, 0.5), (0.5, 0.7), (0.3, 0.7), (0.3,), (0.5,), (0.7,), (0.9,))
RIVALS = (5, 3, 2)
PERMUTATIONS = (1, 2, 3, 4)


def main() -> None:
    """Print a table for each bundled example."""
    hush()
    for name in RECIPES:
        plan = planning.resolve_plan(recipe.load(Path(name), []), 1)
        device, family = open_machine("fp32"), open_base(plan)
        data = unheard(encode_dataset(plan, family, device))
        shares: dict[tuple[tuple[float, ...], int], list[float]] = {}
        for seed in (0, *PERMUTATIONS):
            said = _rivals(_permuted(plan.train.placed, seed))
            asked = [one for prompts in said for levels in prompts for one in levels]
            found = effect.errors(asked, data.latents, data.captions, device.autocast, effect.AT_ONCE_PX)
            for levels in LEVELS:
                for rivals in RIVALS:
                    sums = [
                        [sum(found[one.key] for one in prompt if one.level in levels) for prompt in prompts]
                        for prompts in (each[: rivals + 1] for each in said)
                    ]
                    best = sum(min(one) == one[0] for one in sums) / len(sums)
                    shares.setdefault((levels, rivals), []).append(best)
        typer.echo(f"{name}: share whose own caption fits best, over chance")
        for (levels, rivals), (true, *mixed) in shares.items():
            chance = 1 / (rivals + 1)
            typer.echo(f"  levels {levels}, {rivals} rivals: true {true:.2f} ({true / chance:.1f} x), mixed up "
                  f"{min(mixed):.2f} to {max(mixed):.2f} ({statistics.mean(mixed) / chance:.1f} x)")  # fmt: skip


def _permuted(placed: Sequence[Placed], seed: int) -> list[Placed]:
    captions = [one.example.caption for one in placed]
    if seed:
        random.Random(seed).shuffle(captions)
    return [p._replace(example=p.example._replace(caption=c)) for p, c in zip(placed, captions, strict=True)]


def _rivals(placed: Sequence[Placed]) -> list[list[list[effect.Judged]]]:
    """As the run asks, at all levels: image, prompt (its own first), level."""
    return [
        [[prompt[0]._replace(level=level) for level in LEVELS[0]] for prompt in said]
        for said in effect.rivals_of(placed)
    ]  # fmt: skip


if __name__ == "__main__":
    main()
