"""A small SDXL base as one file, as the original code would have written it."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor

from finetune import families
from finetune.families import single_file
from support.originals import in_sgm_names, open_clip_to_ldm, vae_to_ldm


def sdxl_tensors(base: Path) -> dict[str, Tensor]:
    """Of a small diffusers folder."""
    parts = families.load(str(base)).parts
    first, second = (
        {k.removeprefix("text_model."): v for k, v in parts[name].state_dict().items()}
        for name in ("text_encoder", "text_encoder_2")
    )
    file = in_sgm_names(parts["unet"]) | dict(vae_to_ldm(k, v) for k, v in parts["vae"].state_dict().items())
    file |= {f"conditioner.embedders.0.transformer.text_model.{k}": v for k, v in first.items()}
    projection = second.pop("text_projection.weight").T
    open_clip = {k: v for k, v in open_clip_to_ldm(second).items() if ".resblocks.23." not in k}
    file |= {k.replace("cond_stage_model.", "conditioner.embedders.1."): v for k, v in open_clip.items()}
    file["conditioner.embedders.1.model.text_projection"] = projection
    return {k: v.clone().contiguous() for k, v in file.items()}


def sdxl_file(base: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Written at `path`; that base's configs take the place of the published ones."""
    monkeypatch.setattr(single_file, "config_folder", lambda _: base)
    monkeypatch.setattr(single_file, "_resolution", lambda *_: 64)
    save_file(sdxl_tensors(base), path)
    return path
