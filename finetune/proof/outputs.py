"""What a model computes on fixed inputs: kept of the model that was trained, and held against the file made of it.

The base is compared as it was trained: its weights rounded to the run's precision (or to 4 bits), then written out in
float32 on the CPU, in the trained model as in the fresh one. So nothing but the file's own rounding is between the two.
A base too large for that is compared in the precision it is in, where rounding inside the model adds noise.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.families.base import Conditioning, Family, Prompt, Text, evaluation_mode, large_encoders
from finetune.families.quantised import write_out

PROMPTS = (Prompt("a photo of a mug on a table"), Prompt(""))
LIMIT = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest difference from the trained model's outputs, as a share of what training changed in them, by the file's
dtype. Measured over the recorded runs of all families (tests/bits.py), in float32: 3.0e-5 to 1.5e-4, and 2.6e-4 where
a text encoder's output changed by 0.1 %; of a file in float16, trained in bf16: 1.0e-4; at a larger change, float16
4.1e-4 and bfloat16 2.8e-3. A DoRA file without its magnitudes is off by 4.1e-1."""
NOISE = 2e-5
"""of an output itself: float32 sums in another order"""
LARGE_NOISE = 1e-2
"""the same of a base compared in bfloat16, where every operation rounds: 1.1e-3 to 4.8e-3 on small FLUX, Qwen-Image,
Z-Image and FLUX.2 bases"""


class Inputs(NamedTuple):
    """What the outputs are computed on: two noise levels, two captions."""

    noisy: Tensor
    """(2, c, h, w)"""
    t: Tensor
    """(2,)"""
    texts: dict[str, Text]
    """what the text encoders that nothing changes made of PROMPTS"""
    guidance: float
    """what a guided denoiser is told"""


class Reference(NamedTuple):
    """The trained model's outputs, and how its base was held."""

    inputs: Inputs
    outputs: dict[str, Tensor]
    precision: torch.dtype
    bits: int | None
    """of the denoiser's weights"""


@torch.no_grad()
def reference(
    family: Family, known: Mapping[str, Mapping[str, Text]], precision: torch.dtype, bits: int | None, large: bool
) -> Reference:
    """Of a trained model, which is of no more use for training after it.

    known: each large text encoder -> a prompt's key -> its text, PROMPTS among them. precision, bits: of the base.
    """
    if not large:
        in_float32(family)
    texts = {e: Text.stacked([known[e][prompt.key] for prompt in PROMPTS]) for e in large_encoders(family)}
    inputs = _inputs(family, texts)
    with evaluation_mode(family):
        return Reference(inputs, compute(family, inputs), precision, bits)


def in_float32(family: Family) -> None:
    """Write the parts that can be trained out in float32, on the CPU: their values are as they were rounded."""
    family.parts.to(torch.device("cpu"))
    for name in family.presets:
        write_out(family.parts[name])


@torch.no_grad()
def encoded(family: Family, changed: Collection[str] = ()) -> Inputs:
    """The inputs, captions read by the large encoders now; then these are unloaded. changed: components that an adapter
    changes, whose encoders are asked each time."""
    large = [encoder for encoder in large_encoders(family) if encoder not in changed]
    texts = {encoder: family.encode(encoder, PROMPTS) for encoder in large}
    family.parts.release(*large)
    return _inputs(family, texts)


@torch.no_grad()
def compute(family: Family, inputs: Inputs) -> dict[str, Tensor]:
    """component -> its output: of each text encoder that is asked each time, and of the denoiser."""
    device = next(family.parts[family.denoiser_name].parameters()).device  # of 4 bits: a GPU where there is one
    made = {e: inputs.texts[e] if e in inputs.texts else family.encode(e, PROMPTS) for e in family.encoders}
    texts = {e: text.each(lambda part: part.to(device)) for e, text in made.items()}
    family.guidance = inputs.guidance
    given = Conditioning(family.combine(list(texts.values())))
    output = family.predict(inputs.noisy.to(device), inputs.t.to(device), given)
    outputs = {encoder: _all_of(text).cpu() for encoder, text in texts.items() if encoder not in inputs.texts}
    return outputs | {family.denoiser_name: output.cpu()}


def off(found: Tensor, expected: Tensor, before: Tensor) -> float:
    """How far an output is from the expected one, as a share of the change from before."""
    change, apart = (float((a - b).double().norm()) for a, b in ((expected, before), (found, expected)))
    if not math.isfinite(change + apart):
        return math.inf
    return apart / change if change else 0.0


def agree(found: Tensor, expected: Tensor, before: Tensor, limit: float, noise: float = NOISE) -> bool:
    """limit: of the change; noise: of the output itself."""
    allowed = limit * float((expected - before).double().norm()) + noise * float(expected.double().norm())
    return float((found - expected).double().norm()) <= allowed


def _inputs(family: Family, texts: dict[str, Text]) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    side = family.facts.stride * 2
    device = next(family.parts["vae"].parameters()).device
    cells = family.encode_images(torch.zeros(1, 3, side, side, device=device)).mean.shape[1:]
    t = family.process.at(torch.tensor([0.25, 0.75], dtype=torch.float64))
    return Inputs(torch.randn(2, *cells, generator=generator), t, texts, family.guidance)


def _all_of(text: Text) -> Tensor:
    """Tokens and pooled state in one row a caption."""
    return torch.cat([part.flatten(1) for part in (text.tokens, text.pooled) if part is not None], 1)
