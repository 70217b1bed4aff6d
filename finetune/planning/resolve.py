"""The recipe with every default filled in that depends on base, data or machine; what does not fit is refused."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from finetune import families, reading, recipe, references
from finetune import resources as shipped
from finetune.choices import GUIDANCE_IS, MOST_GUIDANCE
from finetune.data.example import Dataset
from finetune.errors import BaseError, RecipeError
from finetune.families.base import BaseInfo, large_encoders
from finetune.machine import has_gpu
from finetune.planning.prompts import filled, resolve_prompts
from finetune.recipe import AnyAdapter, ClassImages, Evaluate, LowRank, Prior, Recipe
from finetune.recipe.compose import MAX_BYTES
from finetune.recipe.resolved import (
    ResolvedData,
    ResolvedObjective,
    ResolvedRecipe,
    ResolvedSample,
    ResolvedTrain,
)

_HALF = re.compile("[\ud800-\udfff]")


def resolve(wanted: Recipe, facts: BaseInfo, data: Dataset, captions: Sequence[str], steps: int) -> ResolvedRecipe:
    """captions: those that are trained on, for the prompts of samples; steps: the length that was counted.

    Raises:
        RecipeError: a precision that this machine has not; a placeholder of a prompt that has no word.
    """
    written, objective, sample = wanted.data, wanted.objective, wanted.sample
    return ResolvedRecipe.of(
        wanted,
        data=ResolvedData.of(
            written, path=Path(str(written.path)) if _bundled(written.path) else reading.real_path(written.path),
            trigger=data.trigger or None, class_word=data.class_word or None,
            resolution=written.resolution or facts.resolution,
        ),
        prior=_prior(wanted.prior, data), adapter=_adapter(wanted.adapter),
        evaluate=_evaluate(wanted.evaluate, data),
        objective=ResolvedObjective.of(
            objective, prediction=facts.prediction, timestep_density=_density(facts, wanted),
            guidance=1.0 if facts.guided and objective.guidance is None else objective.guidance,
        ),
        optimizer=type(wanted.optimizer).of(wanted.optimizer, text_encoder_learning_rate=_text_rate(wanted)),
        train=ResolvedTrain.of(wanted.train, steps=steps, precision=precision(wanted.train.precision)),
        sample=ResolvedSample.of(
            sample, guidance=facts.guidance if sample.guidance is None else sample.guidance,
            prompts=resolve_prompts(wanted, data, captions), negative=filled("sample.negative", sample.negative, data),
        ),
    )  # fmt: skip


def check_kept(resolved: ResolvedRecipe) -> None:
    """A run keeps its recipe, to be resumed by it. Raises RecipeError where that could not be written, or not read."""
    try:
        size = len(recipe.dumps(resolved).encode())
    except UnicodeEncodeError as e:
        half = next(key for key in recipe.keys() if _HALF.search(str(recipe.value(resolved, key))))
        said = f"{half}: {str(recipe.value(resolved, half))!r} is no UTF-8, in which a recipe is kept"
        raise RecipeError(said, "give that file or folder another name") from e
    if size > MAX_BYTES:
        longest = max(recipe.keys(), key=lambda key: len(str(recipe.value(resolved, key))))
        said = f"the recipe with all its values has {size:,} bytes, and {MAX_BYTES:,} are the most that is read again"
        raise RecipeError(said, f"shorten {longest}")


def _prior(prior: Prior, data: Dataset) -> Prior:
    if isinstance(prior, ClassImages) and prior.prompt:
        return ClassImages.of(prior, prompt=filled("prior.prompt", prior.prompt, data))
    return prior


def _adapter(adapter: AnyAdapter) -> AnyAdapter:
    start = _start_of(adapter)
    return (
        type(adapter).of(adapter, init_from=reading.real_path(start))
        if isinstance(adapter, LowRank) and start
        else adapter
    )


def _start_of(adapter: AnyAdapter) -> Path | None:
    """Where adapter.init_from is. Raises RecipeError when it is not there."""
    if adapter.init_from is None:
        return None
    try:
        start = references.adapter_path(adapter.init_from)
    except BaseError as e:
        raise RecipeError(f"adapter.init_from: {e.problem}", e.hint) from e
    if not reading.exists(start):
        raise RecipeError(f"adapter.init_from: no {start}", "a LoRA file, a PEFT directory, a run folder or RUN@STEP")
    return start


def _evaluate(evaluate: Evaluate, data: Dataset) -> Evaluate:
    named = enumerate(evaluate.prompts, 1)
    known: dict[str, object] = {"prompts": tuple(filled(f"evaluate.prompts, item {n}", one, data) for n, one in named)}
    if evaluate.judge is not None:
        known["judge"] = reading.real_path(evaluate.judge)
    return Evaluate.of(evaluate, **known)


def _bundled(path: Path) -> bool:
    return shipped.data_path(path) != path


def _density(facts: BaseInfo, wanted: Recipe) -> str:
    said = wanted.objective.timestep_density
    return "logit_normal" if facts.prediction == "flow" and said == "auto" else said


def precision(wanted: str, key: str = "train.precision") -> str:
    """What `auto` means here: bf16 where the device computes it, else fp16 on CUDA, else fp32.

    Raises:
        RecipeError: an explicit choice that cannot work on this machine.
    """
    import torch

    cuda = has_gpu()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "bf16" if bf16 else "fp16" if cuda else "fp32"
    if wanted == "fp16" and not cuda:
        raise RecipeError(f"{key} = fp16 needs a CUDA device, and there is none", "auto, fp32 or bf16")
    if wanted == "bf16" and cuda and not bf16:
        raise RecipeError(f"{key} = bf16: this GPU has no bf16 arithmetic", "auto, fp16 or fp32")
    return wanted


def check_compatible(facts: BaseInfo, wanted: Recipe) -> None:
    """Raises RecipeError when the recipe asks for what this base has not."""
    objective, base = wanted.objective, wanted.base
    of_flow = ("timestep_density", "logit_mean", "logit_std", "shift")
    idle = [f"objective.{key}" for key in of_flow if getattr(objective, key) not in (None, "auto")]
    if idle and facts.prediction != "flow":
        raise RecipeError(f"{', '.join(idle)}: {base} predicts {facts.prediction}, not flow", "leave it out")
    if objective.timestep_density == "uniform" and any(key.startswith("objective.logit") for key in idle):
        raise RecipeError(
            'objective.logit_mean, logit_std: have no effect with timestep_density = "uniform"', "leave them out"
        )
    if objective.guidance is not None and not facts.guided:
        raise RecipeError(f"objective.guidance: {base} has no guidance embedding", "leave it out")
    if wanted.sample.negative and facts.guided:
        raise RecipeError(
            f"sample.negative: {base} is guided by an embedding, and reads no negative prompt", "leave it out"
        )
    if facts.distilled and not objective.distilled:
        raise RecipeError(
            f"{base} is distilled: {facts.distilled}; training may undo that",
            "train on the base it was distilled from, where there is one; or say objective.distilled = true",
        )
    _can_be_sampled(facts, wanted)
    _has_components(facts, wanted)
    family = families.family_class(facts.family)
    if wanted.data.text_encoder_bits and not large_encoders(family):
        raise RecipeError(f"data.text_encoder_bits: {base} has no large text encoder", "leave it out")
    fewer = {"data.text_encoder_bits": wanted.data.text_encoder_bits, "train.base_bits": wanted.train.base_bits}
    asked = [key for key, bits in fewer.items() if bits]
    if asked and find_spec("bitsandbytes") is None:
        raise RecipeError(f"{asked[0]} needs bitsandbytes, which is not installed", "pip install bitsandbytes")
    if missing := [name for name in wanted.report.to if find_spec(name) is None]:
        raise RecipeError(f"report.to: {missing[0]} is not installed", f"pip install {' '.join(missing)}")
    judge = wanted.evaluate.judge
    if wanted.evaluate.every and judge is None and not shipped.is_pocket(wanted.base):
        raise RecipeError(
            f"evaluate.every: pictures of {wanted.base} need a judge that knows photos",
            "name the folder of a CLIP or DINOv2, evaluate.judge; or leave out evaluate.every, pick and stop",
        )
    if judge is not None and not reading.is_file(judge / "config.json"):
        raise RecipeError(
            f"evaluate.judge: no model in {judge}", "the folder of a CLIP or DINOv2 in transformers' layout"
        )
    _start_of(wanted.adapter)


def _can_be_sampled(facts: BaseInfo, wanted: Recipe) -> None:
    """The sheet at the end is as the recipe says. Raises RecipeError when the base's sampler cannot do that."""
    steps, guidance = wanted.sample.steps, wanted.sample.guidance
    if steps > facts.noise_levels:
        raise RecipeError(
            f"sample.steps = {steps}: {wanted.base} was trained at {facts.noise_levels} noise levels, and can be "
            "denoised in no more steps",
            "20 to 50 are usual",
        )
    if guidance is not None and guidance > MOST_GUIDANCE:
        raise RecipeError(f"sample.guidance = {guidance:g}: pictures of that are no pictures", GUIDANCE_IS)


def _has_components(facts: BaseInfo, wanted: Recipe) -> None:
    family = families.family_class(facts.family)
    having = ["denoiser" if c == family.denoiser_name else c for c in family.presets]
    if lacking := [c for c in wanted.adapter.components if c not in having]:
        raise RecipeError(
            f"adapter.components: {wanted.base} has no {' and no '.join(lacking)} that can be trained",
            f"it has {', '.join(having)}",
        )


def resolve_prediction(facts: BaseInfo, wanted: Recipe) -> BaseInfo:
    """The facts, with the recipe's word where the base is silent.

    Raises:
        RecipeError: base and recipe say different things.
    """
    said = wanted.objective.prediction
    if said == "auto" or (said == facts.prediction and facts.prediction_known):
        return facts
    if facts.prediction_known:
        raise RecipeError(
            f"objective.prediction = {said}, but {wanted.base} predicts {facts.prediction} ({facts.evidence})",
            'leave it at "auto"',
        )
    if said == "flow":
        raise RecipeError(f"objective.prediction = flow: {wanted.base} is no flow model", '"epsilon" or "v"')
    if said == "epsilon" and facts.zero_snr:
        raise RecipeError(
            f"objective.prediction = epsilon, but {wanted.base} ends in pure noise, where epsilon says nothing "
            f"({facts.evidence})",
            '"v", which is what such bases predict',
        )
    return facts.settled(said, "the recipe's objective.prediction")


def _text_rate(wanted: Recipe) -> float | None:
    if not any(c.startswith("text_encoder") for c in wanted.adapter.components):
        return None
    said = wanted.optimizer.text_encoder_learning_rate
    return wanted.optimizer.learning_rate if said is None else said
