"""Bases that say too little, too much or something else of themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from finetune import families
from finetune.errors import BaseError

UNET = "model.diffusion_model."


def header_only(
    path: Path, *extra: str, line: str = "sdxl", metadata: dict[str, str] | None = None, **more: Any
) -> Path:
    """A file with the names and shapes that tell what it is."""
    names: dict[str, Tensor] = {
        f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3),
        f"{UNET}input_blocks.1.1.proj_in.weight": torch.zeros(8, 8, *((1, 1) if line == "sd1" else ())),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(4, 3, 3, 3),
    }
    if line == "sdxl":
        names["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"] = torch.zeros(4, 4)
        names["conditioner.embedders.1.model.token_embedding.weight"] = torch.zeros(4, 4)
    else:
        names["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] = torch.zeros(4, 4)
    save_file(names | {key: torch.tensor([120.0]) for key in extra} | more, path, metadata)
    return path


def refusal(base: Path | str, kind: type[Exception] = BaseError) -> str:
    with pytest.raises(kind) as raised:
        families.detect(str(base))
    assert raised.value.hint and "\n" not in raised.value.problem  # type: ignore[attr-defined]
    return raised.value.problem  # type: ignore[attr-defined]
