"""The pictures a run makes of its recipe's prompts: in flight, and the final sheet from the exported file."""

from pathlib import Path
from typing import Any

from finetune import resources as shipped
from finetune.families.base import Family
from finetune.machine import Machine
from finetune.planning.plan import Plan
from finetune.sampling import sampler
from finetune.sampling.sampler import Picture, Read, Shot


def draw(plan: Plan, family: Family, pipeline: Any, machine: Machine, texts: Read | None = None) -> list[Picture]:
    return [sampler.render(family, pipeline, shot, machine.device, machine.autocast, texts) for shot in shots(plan)]


def shots(plan: Plan) -> list[Shot]:
    """The recipe's prompts, each with its own seed, the same for the whole run."""
    wanted, side = plan.recipe.sample, plan.recipe.data.resolution
    side = side // plan.facts.stride * plan.facts.stride
    return [
        Shot(prompt, wanted.seed + i, wanted.negative, wanted.steps, wanted.guidance, side, side)
        for i, prompt in enumerate(wanted.prompts)
    ]


def write(plan: Plan, pictures: list[Picture], folder: Path, facts: dict[str, str]) -> list[Path]:
    paths = []
    facts = {"base": shipped.public_name(plan.recipe.base), **facts}
    for i, (shot, picture) in enumerate(zip(shots(plan), pictures, strict=True)):
        path = folder / f"{i:02d}.png"
        sampler.write_png(picture.image, path, {**shot.described(), **facts})
        paths.append(path)
    return paths


def write_sheet(plan: Plan, rows: list[tuple[str, list[Picture]]], out: Path, facts: dict[str, str]) -> Path:
    """Each row's pictures beside each other as `sheet.png`, and each for itself under samples/final-ROW."""
    path = out / "sheet.png"
    page = sampler.sheet([(label, [p.image for p in pictures]) for label, pictures in rows], plan.recipe.sample.prompts)
    base = shipped.public_name(plan.recipe.base)
    sampler.write_png(page, path, {"prompt": " | ".join(plan.recipe.sample.prompts), "base": base, **facts})
    for label, pictures in rows:
        write(plan, pictures, out / "samples" / f"final-{label}", facts if label != "base" else {})
    return path
