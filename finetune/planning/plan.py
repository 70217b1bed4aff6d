"""Everything a run will do, settled before anything heavy is loaded: the recipe with every default filled in,
the buckets, the schedule, and what it will take."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from finetune import families, optimizers, recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.data import dataset, images
from finetune.data.captions import mentions, without_trigger
from finetune.data.dataset import Dataset, Placed
from finetune.diffusion import chance as draws
from finetune.errors import DataError, RecipeError
from finetune.families.base import Facts, large_encoders
from finetune.families.parts import config, weight_files
from finetune.families.quantised import weight_bytes
from finetune.machine import has_gpu
from finetune.planning.schedule import Schedule, by_bucket
from finetune.recipe import Loaded, Recipe

DEFAULT_STEPS = 1000
DEFAULT_PROMPTS = 4


class Pool(NamedTuple):
    """Examples that are scheduled together."""

    placed: tuple[Placed, ...]
    schedule: Schedule


class BucketRow(NamedTuple):
    bucket: images.Bucket
    images: int
    batches: int
    """an epoch"""
    weight: float
    """visits an epoch, mean over its images; above 1 where the batch is filled by cycling"""
    worst_crop_loss: float


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    """resolved: every default that depends on base or data is filled in"""
    sources: dict[str, str]
    facts: Facts
    data: Dataset
    train: Pool
    prior: Pool | None
    held_out: tuple[Placed, ...]
    micros: int
    """micro-batches of the whole run, all ranks"""

    @property
    def steps(self) -> int:
        assert self.recipe.train.steps is not None
        return self.recipe.train.steps

    @property
    def samples(self) -> int:
        return self.micros * self.recipe.train.batch

    def visits(self) -> Counter[int]:
        return self.train.schedule.visits(self.micros)

    def buckets(self) -> list[BucketRow]:
        rows = []
        for samples in self.train.schedule.buckets:
            placed = [self.train.placed[i] for i in samples]
            batches = -(-len(samples) // self.recipe.train.batch)
            weight = batches * self.recipe.train.batch / len(samples)
            worst = max(p.crop_loss for p in placed)
            rows.append(BucketRow(placed[0].bucket, len(samples), batches, weight, worst))
        return rows


def settle(loaded: Loaded, world: int = 1) -> Plan:
    """Read base and data, and decide all that was left open.

    Raises:
        RecipeError, DataError, BaseError: what does not fit, in the user's words.
    """
    wanted, sources = loaded.recipe, dict(loaded.sources)
    facts = agreed(families.detect(wanted.base), wanted)
    _fits(facts, wanted)
    data = dataset.read(
        shipped.data_path(wanted.data.path), trigger=wanted.data.trigger, class_word=wanted.data.class_word,
        allow_uncaptioned=wanted.data.allow_uncaptioned,
    )  # fmt: skip
    resolution = wanted.data.resolution or facts.resolution
    buckets = images.plan_buckets(resolution**2, facts.stride, wanted.data.max_aspect)
    training, held_out = _hold_out(dataset.place(data.examples, buckets), wanted)
    train = _pool(training, wanted, world)
    prior = _prior(wanted, data, buckets, world)
    micros, steps = _length(wanted, train.schedule)
    captions = list(dict.fromkeys(p.example.caption for p in training))
    prompts = wanted.sample.prompts or tuple(captions[:DEFAULT_PROMPTS])
    resolved = recipe.replace(
        wanted,
        data__path=Path(str(wanted.data.path)) if _bundled(wanted.data.path) else wanted.data.path.resolve(),
        data__trigger=data.trigger or None,
        data__class_word=data.class_word or None,
        data__resolution=resolution,
        adapter__alpha=wanted.adapter.alpha or float(wanted.adapter.rank),
        adapter__init_from=wanted.adapter.init_from.resolve() if wanted.adapter.init_from else None,
        objective__prediction=facts.prediction,
        objective__density=_density(facts, wanted),
        objective__guidance=1.0 if facts.guided and wanted.objective.guidance is None else wanted.objective.guidance,
        sample__guidance=facts.guidance if wanted.sample.guidance is None else wanted.sample.guidance,
        optimizer__text_encoder_learning_rate=_text_rate(wanted),
        train__steps=steps,
        train__precision=precision(wanted.train.precision),
        sample__prompts=tuple(p.replace("{trigger}", data.trigger or "").strip() for p in prompts),
    )
    for key in recipe.keys():
        if recipe.value(resolved, key) != recipe.value(wanted, key) and key not in sources:
            sources[key] = "derived"
    return Plan(resolved, sources, facts, data, train, prior, tuple(held_out), micros)


def _density(facts: Facts, wanted: Recipe) -> str:
    said = wanted.objective.density
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


def _fits(facts: Facts, wanted: Recipe) -> None:
    """Raises RecipeError when the recipe asks for what this base has not."""
    objective, base = wanted.objective, wanted.base
    told = {"density": objective.density if objective.density != "auto" else None, "logit_mean": objective.logit_mean,
            "logit_deviation": objective.logit_deviation, "shift": objective.shift}  # fmt: skip
    idle = [f"objective.{key}" for key, value in told.items() if value is not None]
    if idle and facts.prediction != "flow":
        raise RecipeError(f"{', '.join(idle)}: {base} predicts {facts.prediction}, not flow", "leave it out")
    if objective.density == "uniform" and any(key.startswith("objective.logit") for key in idle):
        raise RecipeError(
            'objective.logit_mean, logit_deviation: have no effect with density = "uniform"', "leave them out"
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
    _has_components(facts, wanted)
    family = families.family_class(facts.family)
    if wanted.data.text_encoder_bits and not large_encoders(family):
        raise RecipeError(f"data.text_encoder_bits: {base} has no large text encoder", "leave it out")
    fewer = {"data.text_encoder_bits": wanted.data.text_encoder_bits, "train.base_bits": wanted.train.base_bits}
    asked = [key for key, bits in fewer.items() if bits]
    if asked and find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"{asked[0]} needs bitsandbytes, which is not installed", "pip install 'finetune-diffusion[bitsandbytes]'"
        )
    start = wanted.adapter.init_from
    if start is not None and not start.exists():
        raise RecipeError(f"adapter.init_from: no {start}", "a LoRA file, a PEFT directory or a run folder")


def _has_components(facts: Facts, wanted: Recipe) -> None:
    family = families.family_class(facts.family)
    having = ["denoiser" if c == family.denoiser_name else c for c in family.presets]
    if lacking := [c for c in wanted.adapter.components if c not in having]:
        raise RecipeError(
            f"adapter.components: {wanted.base} has no {' and no '.join(lacking)} that can be trained",
            f"it has {', '.join(having)}",
        )


def agreed(facts: Facts, wanted: Recipe) -> Facts:
    """The facts, with the recipe's word where the base is silent.

    Raises:
        RecipeError: base and recipe say different things.
    """
    said = wanted.objective.prediction
    if said == "auto" or said == facts.prediction:
        return facts
    if facts.prediction_known:
        raise RecipeError(
            f"objective.prediction = {said}, but {wanted.base} predicts {facts.prediction} ({facts.evidence})",
            'leave it at "auto"',
        )
    return facts._replace(prediction=said, prediction_known=True, evidence=f"{facts.evidence}; the recipe")


class Component(NamedTuple):
    """What training one component takes, in bytes of the device's memory."""

    name: str
    parameters: int
    trainable: int
    modules: int
    """that carry an adapter; 0 when all of it is trained"""
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    mean_bytes: int
    """of the running mean, with train.ema"""

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.mean_bytes


def components(plan: Plan) -> list[Component]:
    """Exact counts, from the model's structure without its weights."""
    from finetune.adapters import attach as adapters

    family = families.family_class(plan.facts.family)
    modules = family.skeleton(families.locate(plan.recipe.base), plan.facts)
    config, half = plan.recipe.adapter, plan.recipe.train.precision != "fp32"
    element = 2 if half else 4
    total = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    held = {name: total[name] * element for name in modules}
    if plan.recipe.train.base_bits:
        held[family.denoiser_name] = weight_bytes(modules[family.denoiser_name], element, family.blocks)
    trained = {name: modules[name] for name in adapters.component_names(config, family.denoiser_name)}
    adapters.check_ranks(trained, family.presets, config)
    trainable = adapters.attach(trained, family.presets, config, seed=0)
    rows, before = [], list[int]()
    for name in modules:
        sizes = [p.numel() for p in trainable.get(name, {}).values()]
        frozen = held[name] if config.method == "lora" or not sizes else 0
        kept = optimizers.state_bytes(plan.recipe.optimizer.name, before)
        before += sizes
        state = optimizers.state_bytes(plan.recipe.optimizer.name, before) - kept  # what parameters share counts once
        carried = len(sizes) // 2 if config.method == "lora" else 0
        weight = frozen + 4 * sum(sizes)
        mean = 4 * sum(sizes) if plan.recipe.train.ema else 0
        rows.append(Component(name, total[name], sum(sizes), carried, weight, 4 * sum(sizes), state, mean))
    return rows


def encoder_bytes(plan: Plan) -> dict[str, int]:
    """Weights of each large text encoder while it reads captions, before training; about, where it is quantised."""
    where, precision = Path(families.locate(plan.recipe.base)), plan.recipe.train.precision
    element, found = 4 if precision == "fp32" else 2, {}
    for encoder in large_encoders(families.family_class(plan.facts.family)):
        clip = str(config(where / encoder / "config.json").get("model_type")).startswith("clip")
        bits = None if clip else plan.recipe.data.text_encoder_bits  # CLIP is small enough
        headers = [weights.read_header(file) for file in weight_files(where / encoder / "model.safetensors")]
        shapes = {name: shape for header in headers for name, shape in header.shapes.items()}
        held = sum(math.prod(s) for n, s in shapes.items() if bits and len(s) == 2 and not _NOT_QUANTISED.search(n))
        whole = sum(math.prod(shape) for shape in shapes.values()) - held
        wide = sum(math.prod(s) for n, s in shapes.items() if _OVERFLOWS.search(n)) if precision == "fp16" else 0
        found[encoder] = (whole + wide) * element + round(held * _QUANTISED_ELEMENT[bits or 8])
    return found


_NOT_QUANTISED = re.compile(r"embed|shared|lm_head|\.wo\.|relative_attention_bias")
"""what transformers keeps: embeddings, the last layer, and of T5 what overflows"""
_OVERFLOWS = re.compile(r"\.wo\.")
"""of T5, which transformers keeps in float32 in place of float16"""
_QUANTISED_ELEMENT = {8: 1.0, 4: 0.5 + 4 / 64}
"""bytes a weight; nf4 has a float32 scale for each 64"""


def _bundled(path: Path) -> bool:
    return shipped.data_path(path) != path


def _hold_out(placed: list[Placed], wanted: Recipe) -> tuple[list[Placed], list[Placed]]:
    count = wanted.validation.count
    if count >= len(placed):
        raise DataError(
            f"validation.count = {count} leaves nothing to train on: the dataset has {len(placed)} images",
            f"at most {len(placed) - 1}",
        )
    chosen = set(draws.permutation(len(placed), wanted.train.seed, "held out")[:count])
    return [p for i, p in enumerate(placed) if i not in chosen], [p for i, p in enumerate(placed) if i in chosen]


def _pool(placed: list[Placed], wanted: Recipe, world: int) -> Pool:
    numbers = {bucket: i for i, bucket in enumerate(sorted({p.bucket for p in placed}))}
    buckets = by_bucket([numbers[p.bucket] for p in placed])
    schedule = Schedule(buckets, wanted.train.batch, wanted.train.accumulate, wanted.train.seed, world)
    return Pool(tuple(placed), schedule)


def _prior(wanted: Recipe, data: Dataset, buckets: Sequence[images.Bucket], world: int) -> Pool | None:
    """Class images, scheduled like the others: a prior batch beside each training batch."""
    if wanted.prior.mode == "self" and not data.trigger:
        raise RecipeError(
            'prior.mode = "self" compares captions with and without the trigger, and there is no trigger',
            "give data.trigger",
        )
    captions = [e.caption for e in data.examples]
    if wanted.prior.mode == "self" and all(without_trigger(c, data.trigger, data.class_word) == c for c in captions):
        raise RecipeError(
            f'prior.mode = "self": captions are the same without the trigger {data.trigger!r}',
            "another data.trigger than the class word",
        )
    if wanted.prior.mode != "images":
        return None
    assert wanted.prior.path is not None
    prompt = wanted.prior.prompt or (f"a photo of {data.class_word}" if data.class_word else None)
    if prompt is None:
        raise RecipeError("prior.prompt: missing, and there is no data.class_word to make it from")
    if mentions(prompt, data.trigger):
        raise RecipeError(f"prior.prompt {prompt!r} holds the trigger: it would preserve the subject", "leave it out")
    classes = dataset.read(wanted.prior.path, template=prompt, allow_uncaptioned=True)
    named = [e.name for e in classes.examples if mentions(e.caption, data.trigger)]
    if named:
        raise DataError(
            f"prior.path: captions of class images hold the trigger {data.trigger!r}: {', '.join(named[:3])}",
            "a prior shows the class without the subject: take the trigger out there",
        )
    known = {e.digest for e in data.examples}
    examples = [e._replace(name=f"prior/{e.name}", role="prior") for e in classes.examples]
    twins = [e.name for e in examples if e.digest in known]
    if twins:
        raise DataError(f"prior.path holds images of the dataset itself: {', '.join(twins[:3])}", "remove them there")
    return _pool(dataset.place(examples, buckets), wanted, world)


def _length(wanted: Recipe, schedule: Schedule) -> tuple[int, int]:
    """(micro-batches, optimizer steps) of the run."""
    if wanted.train.epochs is not None:
        return wanted.train.epochs * schedule.micros_per_epoch, schedule.steps_for(wanted.train.epochs)
    steps = wanted.train.steps or DEFAULT_STEPS
    return steps * schedule.group, steps


def _text_rate(wanted: Recipe) -> float | None:
    if not any(c.startswith("text_encoder") for c in wanted.adapter.components):
        return None
    said = wanted.optimizer.text_encoder_learning_rate
    return wanted.optimizer.learning_rate if said is None else said
