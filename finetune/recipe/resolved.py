"""What a run uses of a recipe: as the user wrote it, and whole where that may be left open. Made by planning."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from finetune.recipe.schema import ClassImages, Data, Evaluate, LowRank, Objective, Recipe, Sample, Train, keys
from finetune.recipe.tables import Guidance, Pixels, Positive, follows, value


class ResolvedData(Data):
    resolution: Pixels


class ResolvedObjective(Objective):
    prediction: Literal["epsilon", "v", "flow"]


class ResolvedTrain(Train):
    steps: Positive
    precision: Literal["fp32", "bf16", "fp16"]


class ResolvedSample(Sample):
    guidance: Guidance


class ResolvedRecipe(Recipe):
    """`dumps` of it is a recipe that repeats the run."""

    data: ResolvedData
    objective: ResolvedObjective
    train: ResolvedTrain
    sample: ResolvedSample


def derived(wanted: Recipe, resolved: ResolvedRecipe) -> Iterator[str]:
    """Keys whose values neither the user nor the schema chose: they follow from base, data, machine or another key."""
    return (key for key in keys() if value(wanted, key) != value(resolved, key) or follows(wanted, key))


def without_paths(resolved: ResolvedRecipe, data: str, base: str) -> ResolvedRecipe:
    """What may be said of a run in a file for others: names for data and base, of other paths the last part."""
    prior, adapter = resolved.prior, resolved.adapter
    if isinstance(prior, ClassImages):
        prior = ClassImages.of(prior, path=Path(prior.path.name))
    if isinstance(adapter, LowRank) and adapter.init_from is not None:
        adapter = type(adapter).of(adapter, init_from=Path(adapter.init_from.name))
    evaluate = resolved.evaluate
    if evaluate.judge is not None:
        evaluate = Evaluate.of(evaluate, judge=Path(evaluate.judge.name))
    shown = ResolvedData.of(resolved.data, path=Path(data), cache=None)
    return ResolvedRecipe.of(resolved, base=base, data=shown, prior=prior, adapter=adapter, evaluate=evaluate)
