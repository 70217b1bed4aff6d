"""The pictures a run makes of its recipe's prompts: in flight, and the final sheet from the exported file."""

from collections.abc import Sequence
from pathlib import Path

from finetune import resources as shipped
from finetune.events import Sampled
from finetune.planning.plan import Plan
from finetune.planning.public import public_recipe
from finetune.ranks import ALONE, Ranks
from finetune.reporting.public import public
from finetune.sampling.grid import grid, made_with, row_label
from finetune.sampling.png import write_png
from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Picture, Session


def draw_samples(plan: Plan, session: Session, ranks: Ranks = ALONE) -> list[Picture]:
    """One for each prompt. ranks: those who share them, and all ask the same."""
    wanted = requests(plan)
    shares = [iter(drawn) for drawn in ranks.gathered(list(session.generate_many(ranks.share(wanted))))]
    return [next(shares[i % ranks.world_size]) for i in range(len(wanted))]


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
    for i, (request, picture) in enumerate(zip(requests(plan), pictures, strict=True)):
        path = folder / f"{i:02d}.png"
        write_png(picture.image, path, picture_facts(plan, request, facts))
        paths.append(path)
    return paths


def picture_facts(plan: Plan, request: SampleRequest, facts: dict[str, str]) -> dict[str, str]:
    """What a picture says of itself, to whoever gets it."""
    told = {key: public(text).text for key, text in request.described().items()}
    return {**told, "base": public(shipped.public_name(plan.recipe.base)).text, **facts}


def write_step(plan: Plan, pictures: list[Picture], step: int, name: str, out: Path) -> Sampled:
    """The pictures of a step on the way: each under samples/step-000500, and a sheet of them as
    samples/step-000500.png."""
    folder = out / "samples" / f"step-{step:06d}"
    paths = write_samples(plan, pictures, folder, {"step": str(step)})
    row = (f"after step {step}" if step else "before training", pictures)
    title = f"{name}: step {step} of {plan.steps}" if step else f"{name}: before training"
    sheet = folder.with_name(f"{folder.name}.png")
    return Sampled(step, tuple(paths), write_grid(plan, [row], sheet, title, {"step": str(step)}))


def write_sheet(plan: Plan, rows: list[tuple[str, list[Picture]]], out: Path, facts: dict[str, str]) -> Path:
    """The rows' pictures under each other as `sheet.png`, and each for itself under samples/final-ROW. A row is named
    "base" or after its adapter; facts: what pictures of adapters say of themselves beside their request."""
    named = [(row_label(name, facts.get("adapter", name)), pictures) for name, pictures in rows]
    step = f", step {facts['step']}" if "step" in facts else ""
    title = f"{facts.get('adapter', rows[-1][0])}{step}, and the base model, at the same prompts and seeds"
    path = write_grid(plan, named, out / "sheet.png", title, facts)
    for name, pictures in rows:
        write_samples(plan, pictures, out / "samples" / f"final-{name}", facts if name != "base" else {})
    return path


def final_pictures(out: Path, name: str) -> list[Path]:
    """Those of one row of the final sheet, in the order of the prompts."""
    return sorted((out / "samples" / f"final-{name}").glob("*.png"))


def write_grid(
    plan: Plan, rows: Sequence[tuple[str, list[Picture]]], path: Path, title: str, facts: dict[str, str]
) -> Path:
    """A sheet of rows with a picture for each prompt."""
    wanted = public_recipe(plan.recipe, plan.data).sample
    base = public(shipped.public_name(plan.recipe.base)).text
    details = made_with(base, wanted.steps, wanted.guidance)
    page = grid([(label, [p.image for p in pictures]) for label, pictures in rows], wanted.prompts, title, details)
    write_png(page, path, {"prompt": " | ".join(wanted.prompts), "base": base, **facts})
    return path
