"""What training takes of the device's memory, counted from the model's structure without its weights."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch

from finetune import families, optimizers
from finetune import tensors as weights
from finetune.families.base import large_encoders
from finetune.families.parts import config, weight_files
from finetune.families.quantised import weight_bytes
from finetune.planning.plan import Plan
from finetune.recipe import LowRank


class ComponentFootprint(NamedTuple):
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


def component_footprints(plan: Plan) -> list[ComponentFootprint]:
    """Exact counts, from the model's structure without its weights."""
    from finetune.adapters import attach as adapters

    family = families.family_class(plan.facts.family)
    modules = family.on_meta(families.locate(plan.recipe.base), plan.facts)
    config, half = plan.recipe.adapter, plan.recipe.train.precision != "fp32"
    element = 2 if half else 4
    total = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    held = {name: total[name] * element for name in modules}
    if plan.recipe.train.base_bits:
        held[family.denoiser_name] = weight_bytes(modules[family.denoiser_name], element, family.blocks)
    trained = {name: modules[name] for name in adapters.component_names(config, family.denoiser_name)}
    adapters.check_ranks(trained, family.presets, config)
    trainable = adapters.attach(trained, family.presets, config, seed=0)
    optimizer, rows, before = plan.recipe.optimizer, [], list[torch.Size]()
    for name in modules:
        shapes = [p.shape for p in trainable.get(name, {}).values()]
        sizes = [shape.numel() for shape in shapes]
        frozen = held[name] if isinstance(config, LowRank) or not sizes else 0
        kept = optimizers.state_bytes(optimizer, before)
        before += shapes
        state = optimizers.state_bytes(optimizer, before) - kept  # what parameters share counts once
        carried = adapters.changed_modules(modules[name])
        weight = frozen + 4 * sum(sizes)
        mean = 4 * sum(sizes) if plan.recipe.train.ema else 0
        rows.append(ComponentFootprint(name, total[name], sum(sizes), carried, weight, 4 * sum(sizes), state, mean))
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
