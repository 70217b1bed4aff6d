"""What a plan counts on the model's structure, kept: diffusers and PEFT are loaded only for what was never counted."""

from finetune import families
from finetune.families.folder import DiffusersFolder
from finetune.known import known
from finetune.planning import activations, footprint
from finetune.planning.footprint import ComponentFootprint
from finetune.planning.plan import Plan

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def kept_footprints(plan: Plan) -> list[ComponentFootprint]:
    """As `footprint.component_footprints`. Raises RecipeError as it does."""
    of = _all_that_counts(plan)
    if of is None:
        return footprint.component_footprints(plan)
    rows = known("components", of, LIBRARIES, lambda: footprint.component_footprints(plan))
    return [ComponentFootprint(*row) for row in rows]


def kept_activation_bytes(plan: Plan) -> int | None:
    """As `activations.activation_bytes`."""
    of = _all_that_counts(plan)
    if of is None:
        return activations.activation_bytes(plan)
    found: int | None = known("activations", of, LIBRARIES, lambda: activations.activation_bytes(plan))
    return found


def _all_that_counts(plan: Plan) -> dict[str, object] | None:
    """All that decides the counts, beside the program and its libraries; None: a family of another package may do
    anything."""
    family, recipe = families.family_class(plan.facts.family), plan.recipe
    if plan.facts.family not in families.FAMILIES or not issubclass(family, DiffusersFolder):
        return None
    source, train = family.source(families.locate(recipe.base)), recipe.train
    return {
        "configurations": {part: source.config(part) for part in family.presets},
        "scheduler": source.scheduler(),
        "facts": [str(fact) for fact in plan.facts],
        "adapter": recipe.adapter.model_dump(mode="json"),
        "optimizer": recipe.optimizer.model_dump(mode="json"),
        "train": [train.precision, train.base_bits, train.ema, train.batch, train.gradient_checkpointing],
        "prior": recipe.prior.mode,
        "sizes": sorted({(placed.bucket.width, placed.bucket.height) for placed in plan.train.placed}),
        "controls": [len(placed.example.controls) for placed in plan.train.placed[:1]],
    }
