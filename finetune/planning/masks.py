"""What a plan says of masks: how many images have one, and what is learnt of them."""

from finetune.planning.plan import Plan


def masked_count(plan: Plan) -> int:
    """Of the images that are trained on."""
    return sum(placed.example.mask is not None for placed in plan.train.placed)


def masks_answer(plan: Plan) -> str:
    """A sentence; empty where no image has a mask."""
    count, of, outside = masked_count(plan), len(plan.train.placed), plan.recipe.data.mask_outside
    if not count:
        return ""
    how = "only what is white in it is learnt"
    if outside == "own_prediction":
        how += ", and the rest is held to the base's own prediction"
    elif outside:
        how = f"what is white in it is learnt, and the rest with {outside:g} of the weight"
    return f"{count} of {of} images {'has' if count == 1 else 'have'} one: {how}"
