"""What a single file is, by the names and shapes in its header alone.

The names are those of the original code (CompVis/stable-diffusion, Stability-AI/stablediffusion and generative-models).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from finetune import tensors as weights

Variant = Literal["sd1", "sd2", "sdxl"]

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
SDXL_CLIP, SDXL_OPEN_CLIP = "conditioner.embedders.0.", "conditioner.embedders.1."

WHOLE = "give a Stable Diffusion 1.x, 2.x or XL checkpoint that holds UNet, VAE and text encoders"
_COMPOSED = 'write "BASE + FILE": a diffusers folder or hub id of that line, and this file for its denoiser'
_ITS_BASE = "give the base it was made for; inspect an adapter file to see what it holds"
_BETA_TABLE = "train on Stable Diffusion XL itself, or a base made from it whose noise levels are a beta table's"
SAME_LINE = "train on the text-to-image base of the same line; the adapter works on both"

_FOREIGN = (
    (r"lora_(up|down|A|B)\b|\.lora\.|^lora_|hada_w1|lokr_w|dora_scale|\boft_", "a LoRA or other adapter", _ITS_BASE),
    (r"^emb_params$|^string_to_param|^clip_[lg]$", "a textual-inversion embedding", _ITS_BASE),
    (r"^control_model\.|controlnet_cond_embedding|^input_hint_block", "a ControlNet", _ITS_BASE),
    (r"motion_modules\.", "an AnimateDiff motion module", _ITS_BASE),
    (r"joint_blocks\.\d", "a Stable Diffusion 3 checkpoint", _COMPOSED),
    (r"single_stream_modulation\.", "a FLUX.2 checkpoint", _COMPOSED),
    (r"distilled_guidance_layer\.", "a Chroma checkpoint", WHOLE),
    (r"double_blocks\.\d+\.img_|single_transformer_blocks\.", "a FLUX checkpoint", _COMPOSED),
    (r"cap_embedder\.", "a Lumina or Z-Image checkpoint", _COMPOSED),
    (r"^(model\.diffusion_model\.)?blocks\.\d+\.cross_attn\.", "a Wan or Sana checkpoint", WHOLE),
    (r"^(down|up)_blocks\.\d", "a bare UNet in diffusers names", _COMPOSED),
    (r"^(encoder|decoder)\.(conv_in|mid)", "a bare VAE", WHOLE),
    (r"^(text_model|encoder\.layers|transformer\.resblocks)\b", "a bare text encoder", WHOLE),
)
_MASKED = "an inpainting or depth base"
_WIDE = {5: _MASKED, 7: "an upscaler", 8: "an InstructPix2Pix base", 9: _MASKED}
_ENTRIES = 3
"""blocks of the original code for a level: two layers and a change of size"""


class Kind(NamedTuple):
    """What the names in a file say it is."""

    variant: Variant | None
    """None: nothing this version trains"""
    title: str
    """what it is, with its article"""
    hint: str = WHOLE


def identify(header: weights.Header) -> Kind:
    """What a file is, from its names and shapes alone."""
    shapes = header.shapes
    names = "\n".join(shapes)
    for pattern, title, hint in _FOREIGN:
        if re.search(pattern, names, re.MULTILINE):
            return Kind(None, title, hint)
    entry = shapes.get(f"{UNET}input_blocks.0.0.weight")
    projection = shapes.get(f"{UNET}input_blocks.1.1.proj_in.weight")
    if entry is None:
        return Kind(None, "a bare VAE" if names.startswith(VAE) else "no model we know")
    if entry[1] != 4:
        return Kind(None, wide_title(entry[1]), SAME_LINE)
    if edm := next((name for name in shapes if name.startswith("edm_")), None):
        return Kind(None, f"an EDM base, as CosXL and Playground v2.5 are (its {edm} key)", _BETA_TABLE)
    if any(name.startswith(SDXL_CLIP) for name in shapes) or any(name.startswith(SDXL_OPEN_CLIP) for name in shapes):
        return _sdxl(shapes)
    if projection is None:
        return Kind(None, "an SDXL UNet without its text encoders")
    if f"{UNET}label_emb.0.0.weight" in shapes:
        return Kind(None, "an unCLIP base")
    # 2.x projects with a linear layer where 1.x has a 1x1 convolution
    variant: Variant = "sd2" if len(projection) == 2 else "sd1"
    title = f"a Stable Diffusion {variant[-1]}.x checkpoint"
    for prefixes, part in (((CLIP,), "text encoder"), ((VAE, "vae."), "VAE")):
        if not any(name.startswith(prefixes) for name in shapes):
            return Kind(None, f"{title} without a {part}")
    return Kind(variant, title)


def wide_title(channels: int) -> str:
    """What a base is whose UNet takes other channels than its latents have."""
    return _WIDE.get(channels, f"a base whose UNet takes {channels} channels")


def other_layout(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str:
    """How deep a UNet's transformers are, level by level and in the middle, where they are not as deep as its line's
    by that configuration; empty: they are."""
    found = [_depth(shapes, f"input_blocks.{_ENTRIES * level + 1}.1.") for level, _ in enumerate(_levels(config))]
    found.append(_depth(shapes, "middle_block.1."))
    usual = [*_levels(config), _levels(config)[-1] or _depths(config)[-1]]
    return "" if found == usual or not any(found) else f"{found[:-1]} and {found[-1]}, not {usual[:-1]} and {usual[-1]}"


def _depths(config: Mapping[str, Any]) -> list[int]:
    depth, levels = config.get("transformer_layers_per_block", 1), len(config["block_out_channels"])
    return [depth] * levels if isinstance(depth, int) else list(depth)


def _levels(config: Mapping[str, Any]) -> list[int]:
    """Transformers' depth at each level on the way down; 0: no attention."""
    crossed = ["CrossAttn" in kind for kind in config["down_block_types"]]
    return [depth if has else 0 for depth, has in zip(_depths(config), crossed, strict=True)]


def _depth(shapes: Iterable[str], place: str) -> int:
    start = f"{UNET}{place}transformer_blocks."
    return len({name.removeprefix(start).partition(".")[0] for name in shapes if name.startswith(start)})


def _sdxl(shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    if not any(name.startswith(SDXL_OPEN_CLIP) for name in shapes):
        if any(name.startswith(f"{SDXL_CLIP}transformer.") for name in shapes):
            return Kind(None, "an SDXL checkpoint without its second text encoder")
        return Kind(None, "an SDXL refiner, or a checkpoint in sgm names")
    for prefixes, part in (((SDXL_CLIP,), "first text encoder"), ((VAE, "vae."), "VAE")):
        if not any(name.startswith(prefixes) for name in shapes):
            return Kind(None, f"an SDXL checkpoint without its {part}")
    return Kind("sdxl", "a Stable Diffusion XL checkpoint")
