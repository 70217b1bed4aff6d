"""What the flow-matching families share: the straight path with the base's shift, the sampler, square tokens.

Sources: arXiv:2210.02747, arXiv:2403.03206; the configuration is that of diffusers' FlowMatchEulerDiscreteScheduler.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from finetune.diffusion.process import Process, RectifiedFlow, Shift
from finetune.errors import BaseError
from finetune.families.base import BaseInfo, OriginalName
from finetune.families.folder import DiffusersFolder

SCHEDULERS = {"euler": "FlowMatchEulerDiscreteScheduler"}
PATCH = 2
"""cells of a token's side"""
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class FlowFolder(DiffusersFolder):
    """What the folders of flow-matching transformers share."""

    denoiser_name: ClassVar[str] = "transformer"
    layout: ClassVar[Literal["kohya", "diffusers"]] = "diffusers"
    schedulers: ClassVar[Mapping[str, str]] = SCHEDULERS
    ORIGINAL: ClassVar[Mapping[str, str | tuple[str, int]]] = {}
    """the original code's names, as `original` takes them"""

    @classmethod
    def process_of(cls, scheduler: Mapping[str, Any], facts: BaseInfo) -> Process:
        return process(scheduler)

    def scheduler(self, named: str) -> Any:
        return scheduler(self.scheduler_config, named)

    @classmethod
    def kohya_name(cls, name: str) -> str:
        component, _, path = name.partition(".")
        encoder = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}.get(component)
        return encoder + path.replace(".", "_") if encoder else super().kohya_name(name)

    @classmethod
    def original(cls, name: str) -> OriginalName | None:
        return original(name, cls.ORIGINAL)


def facts(family: str, variant: str, cell: int, **own: Any) -> BaseInfo:
    """Of a base with a flow transformer whose autoencoder's cells are of so many px, and what is the family's own."""
    known: dict[str, Any] = {"prediction": "flow", "prediction_known": True, "zero_snr": True}
    usual = {"resolution": 1024, "stride": PATCH * cell, "vae_scale_factor": cell}
    return BaseInfo(family=family, variant=variant, **known | usual | own)


def cell_of(vae: Mapping[str, Any]) -> int:
    """px of a latent cell's side, of AutoencoderKL's configuration."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def process(scheduler: Mapping[str, Any]) -> Process:
    """Raises BaseError when the scheduler is of another kind."""
    if scheduler.get("_class_name") != SCHEDULERS["euler"]:
        problem = f"scheduler_config.json: {scheduler.get('_class_name')} is no scheduler of a flow"
        raise BaseError(problem, f"it should be {SCHEDULERS['euler']}: is it the base's own?")
    return Process(RectifiedFlow(shift=shift(scheduler)), "flow")


def shift(scheduler: Mapping[str, Any]) -> Shift:
    """Of a base: fixed, or growing with the number of tokens, as its scheduler has it."""
    if not scheduler.get("use_dynamic_shifting"):
        return Shift(float(scheduler.get("shift", 1.0)))
    low, high = float(scheduler.get("base_shift", 0.5)), float(scheduler.get("max_shift", 1.15))
    if scheduler.get("time_shift_type", "exponential") != "exponential":
        raise BaseError("scheduler_config.json: only the exponential shift of times is known", "is it the base's own?")
    few, many = (int(scheduler.get(f"{which}_image_seq_len", n)) for which, n in (("base", 256), ("max", 4096)))
    return Shift(math.exp(low), math.exp(high), few * PATCH**2, many * PATCH**2)


def shift_text(scheduler: Mapping[str, Any]) -> str:
    """Of the base's shift, for the user."""
    found = shift(scheduler)
    if found.most is None:
        return f"shift {found.least:g}"
    return f"shift {found.least:.2f} to {found.most:.2f}, growing with the picture"


def scheduler(own: Mapping[str, Any], named: str) -> Any:
    """diffusers' scheduler with the base's configuration. Raises KeyError: there is none of that name for a flow."""
    import diffusers

    name = SCHEDULERS[named or "euler"]
    return getattr(diffusers, name).from_config({k: v for k, v in own.items() if not k.startswith("_")})


def presets(
    feed_forward: tuple[str, ...], modulation: tuple[str, ...], attention: tuple[str, ...] = _ATTENTION
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Of a transformer that is trained alone: each preset holds the one before."""
    both = (*attention, *feed_forward)
    return {"transformer": {"attention": attention, "attention+ff": both, "all": (*both, *modulation)}}


def attention(*more: str) -> tuple[str, ...]:
    """Patterns of the projections of joint attention, and more."""
    return (*_ATTENTION, *more)


def original(name: str, rules: Mapping[str, str | tuple[str, int]]) -> OriginalName | None:
    """By rules: a path's pattern, in which N is a block's number -> its name there, or the name and the piece of it."""
    path = name.partition(".")[2]
    number = re.search(r"\.(\d+)\.", path)
    rule = rules.get(re.sub(r"\.\d+\.", ".N.", path, count=1))
    if rule is None:
        return None
    written, piece = (rule, 0) if isinstance(rule, str) else rule
    return OriginalName(written.replace("N", number[1], 1) if number else written, piece)


def pack_latents(latents: Tensor) -> Tensor:
    """(b, c, h, w) -> tokens (b, h/2 * w/2, 4c), row by row."""
    return pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack_latents`, for latents of h x w cells."""
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, height // PATCH, width // PATCH)
    return pixel_shuffle(grid, PATCH)


def position_ids(height: int, width: int, device: torch.device) -> Tensor:
    """(h/2 * w/2, 3): (0, row, column) of each token."""
    rows, columns = torch.meshgrid(torch.arange(height // PATCH), torch.arange(width // PATCH), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float().to(device)
