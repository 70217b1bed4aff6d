"""The pictures a run makes of its recipe's prompts: in flight, and the final sheet from the exported file."""

from pathlib import Path

from finetune import resources as shipped
from finetune.planning.plan import Plan
from finetune.sampling.grid import grid
from finetune.sampling.png import write_png
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Picture, Session


def draw_samples(plan: Plan, session: Session) -> list[Picture]:
    return list(session.generate_many(requests(plan)))


def sample_prompts(plan: Plan) -> list[str]:
    """All that a session must read for these pictures."""
    return [*plan.recipe.sample.prompts, plan.recipe.sample.negative]


def requests(plan: Plan) -> list[SampleRequest]:
    """The recipe's prompts, each with its own seed, the same for the whole run."""
    wanted, side = plan.recipe.sample, plan.recipe.data.resolution
    side = side // plan.facts.stride * plan.facts.stride
    return [
        SampleRequest(prompt, wanted.seed + i, wanted.negative, wanted.steps, wanted.guidance, side, side)
        for i, prompt in enumerate(wanted.prompts)
    ]


def write_samples(plan: Plan, pictures: list[Picture], folder: Path, facts: dict[str, str]) -> list[Path]:
    paths = []
    facts = {"base": shipped.public_name(plan.recipe.base), **facts}
    for i, (request, picture) in enumerate(zip(requests(plan), pictures, strict=True)):
        path = folder / f"{i:02d}.png"
        write_png(picture.image, path, {**request.described(), **facts})
        paths.append(path)
    return paths


def write_sheet(plan: Plan, rows: list[tuple[str, list[Picture]]], out: Path, facts: dict[str, str]) -> Path:
    """Each row's pictures beside each other as `sheet.png`, and each for itself under samples/final-ROW."""
    path = out / "sheet.png"
    page = grid([(label, [p.image for p in pictures]) for label, pictures in rows], plan.recipe.sample.prompts)
    base = shipped.public_name(plan.recipe.base)
    write_png(page, path, {"prompt": " | ".join(plan.recipe.sample.prompts), "base": base, **facts})
    for label, pictures in rows:
        write_samples(plan, pictures, out / "samples" / f"final-{label}", facts if label != "base" else {})
    return path
