"""How the tensors of a base's files are stored: number formats, weights packed by others, names of wrapped modules."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from finetune import tensors as weights
from finetune.errors import BaseError
from finetune.machine import STORED

_WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""what torch.compile, FSDP and checkpointing put into names"""
_PARALLEL = "module."
"""what DistributedDataParallel puts before all of them"""
_PACKED = (
    (r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale(_\d|_inv)?|scale_input|input_scale|comfy_quant)$",
     "fp8 weights with scales of their own"),
    (r"\.(absmax|nested_absmax|quant_map|SCB)$|\.quant_state\.|\.bitsandbytes__", "weights packed by bitsandbytes"),
    (r"\.(qweight|qzeros|g_idx|wscales|smooth_factor)$", "weights packed by GPTQ, AWQ or SVDQuant"),
)  # fmt: skip
_WHOLE = "take the version of this model with plain weights: fp16, bf16, fp32, or fp8 without scales"


def plain_name(name: str) -> str:
    """A tensor's name without what wrapped modules put into it."""
    while (shorter := _WRAPPERS.sub(r"\1", name)) != name:
        name = shorter
    return name.removeprefix(_PARALLEL)


def read_header(path: Path) -> weights.Header:
    """As `tensors.read_header`, with plain names.

    Raises:
        BaseError: as there; or the weights are packed; or two tensors have one plain name.
    """
    header = weights.read_header(path)
    refuse_packed(path, header)
    names = {name: plain_name(name) for name in header.shapes}
    if len(set(names.values())) < len(names):
        twice = next(plain for plain, count in Counter(names.values()).items() if count > 1)
        raise BaseError(f"{path} holds {twice} twice, once from a wrapped module", "take another file")
    return header._replace(
        shapes={names[n]: shape for n, shape in header.shapes.items()},
        dtypes={names[n]: kind for n, kind in header.dtypes.items()},
    )


def refuse_packed(path: Path, header: weights.Header) -> None:
    """Raises BaseError where a weight is not the number that is stored under its name."""
    for pattern, title in _PACKED:
        if found := next((name for name in header.shapes if re.search(pattern, name)), None):
            raise BaseError(f"{path} holds {title} ({found}), which are not read here", _WHOLE)
    integers = (n for n, kind in header.dtypes.items() if n.endswith(".weight") and kind in ("I8", "U8"))
    if found := next(integers, None):
        raise BaseError(f"{path} holds weights in integers ({found}), which are not read here", _WHOLE)


def refuse_wrapped(path: Path, header: weights.Header) -> None:
    """Raises BaseError: of a diffusers folder, whose names others read, too."""
    if found := next((name for name in header.shapes if plain_name(name) != name), None):
        said = f"{path} was saved from a wrapped module (torch.compile, DDP or FSDP): its names are as {found}"
        raise BaseError(said, f"save the module inside again, whose names are as {plain_name(found)}")


def formats(files: Iterable[Path], prefix: str = "") -> str:
    """The float types of weights in files, of those whose name begins so, the commonest first: "fp16 and fp32"."""
    sizes = Counter[str]()
    for header in map(weights.read_header, files):
        for name, kind in header.dtypes.items():
            sizes[kind] += math.prod(header.shapes[name]) if plain_name(name).startswith(prefix) else 0
    return " and ".join(STORED[kind] for kind, size in sizes.most_common() if size and kind in STORED)
