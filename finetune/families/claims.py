"""What a single file says of the process it was trained in: what it predicts, and whether its path ends in noise.

A file that says nothing has not said epsilon: whoever opens it is told that, and may know better.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from finetune import tensors as weights
from finetune.diffusion.process import Prediction
from finetune.errors import BaseError
from finetune.families.identify import UNET, Variant

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v"}
_ITS_BASE = "train on the base that it was made from"
V_PRED, ZTSNR, SCHEDULE = "v_pred", "ztsnr", "alphas_cumprod"
_READ = re.compile(rf"^({V_PRED}|{ZTSNR})$")
_BOOKKEEPING = re.compile(
    r"^(betas|logvar|lvlb_weights|scale_factor|global_step|(sqrt_|log_)?\w*alphas_cumprod\w*|posterior_\w+)$"
    r"|^denoiser\.|^(logit_scale|embedding_manager\b.*)$"
)
"""the original code's own tables, which follow from the configuration"""


class Claims(NamedTuple):
    prediction: Prediction | None
    """None: the file does not say, or contradicts itself"""
    zero_snr: bool
    """it says that its path ends in pure noise"""
    evidence: str
    """which words of the file these were"""


def claims(path: Path, header: weights.Header, variant: Variant) -> Claims:
    """Raises BaseError: it says that it predicts what nothing here does, or what cannot be together."""
    said = list(_said(path, header))
    ends = "its ztsnr key" if ZTSNR in header.shapes else _ends_in_noise(path, header)
    found = {prediction for prediction, _ in said}
    prediction = said[0][0] if len(found) == 1 else None
    if prediction:
        told = f"predicts {prediction} by its {said[0][1]}"
    elif found:
        told = "its " + " and ".join(where for _, where in said) + " contradict each other"
    else:
        told = f"what it predicts is not said: {'2.x files do not' if variant == 'sd2' else 'no v_pred key'}"
    if prediction == "epsilon" and ends:
        raise BaseError(f"{path} {told}, and by {ends} it ends in pure noise, where epsilon says nothing", _ITS_BASE)
    return Claims(prediction, bool(ends), f"{told}; ends in pure noise by {ends}" if ends else told)


def _said(path: Path, header: weights.Header) -> Iterator[tuple[Prediction, str]]:
    """ComfyUI's marker key, and modelspec.* as kohya and ComfyUI write it."""
    if V_PRED in header.shapes:
        yield "v", "v_pred key"
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        said = header.metadata.get(key, "").strip().lower().replace("-", "_")
        if said and said not in _PREDICTIONS:
            raise BaseError(f"{path} predicts {said[:40]!r} by its {key}, not epsilon or v", _ITS_BASE)
        if said:
            yield _PREDICTIONS[said], f"{key} {said!r}"
    architecture = header.metadata.get("modelspec.architecture", "")
    if architecture.endswith(("v2-512", "768-v")):
        yield "v" if architecture.endswith("-v") else "epsilon", f"modelspec.architecture {architecture!r}"


def _ends_in_noise(path: Path, header: weights.Header) -> str:
    """Where a schedule that the file carries says so."""
    shape = header.shapes.get(SCHEDULE, ())
    if len(shape) != 1 or not 1 < shape[0] <= 10_000:
        return ""
    with safe_open(path, framework="pt") as file:
        table = file.get_tensor(SCHEDULE).double()
    falling = bool((table.diff() <= 0).all())
    return "its alphas_cumprod" if falling and abs(float(table[-1])) < 1e-7 else ""


def likely(path: Path, header: weights.Header, said: Claims) -> Prediction:
    """The best guess without a forward pass: what ends in noise predicts v; else ComfyUI's tell (supported_models.py,
    SD20), that in v models the biases of the last attention have spread out."""
    if said.prediction or said.zero_snr:
        return said.prediction or "v"
    name = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if name not in header.shapes:
        return "epsilon"
    with safe_open(path, framework="pt") as file:
        spread: float = file.get_tensor(name).float().std(correction=0).item()
    return "v" if spread > 0.09 else "epsilon"


def unused(header: weights.Header, parts: tuple[str, ...]) -> list[str]:
    """Names at the top of a file that nothing reads, or how many of them begin; parts: how those of its parts begin."""
    left = [n for n in header.shapes if not n.startswith(parts) and not _READ.match(n) and not _BOOKKEEPING.match(n)]
    groups: dict[str, list[str]] = {}
    for name in left:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return [names[0] if len(names) == 1 else f"{start}.* ({len(names)})" for start, names in groups.items()]
