"""What a file says it was made for, held against the base."""

from finetune import families
from finetune.families.base import Facts
from finetune.files import layouts

_LINES = {
    "sd_v1": "Stable Diffusion 1.x",
    "stable-diffusion-v1": "Stable Diffusion 1.x",
    "sd_v2": "Stable Diffusion 2.x",
    "stable-diffusion-v2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "stable-diffusion-xl": "Stable Diffusion XL",
    "sd3.5": "Stable Diffusion 3.5",
    "stable-diffusion-3.5": "Stable Diffusion 3.5",
    "sd3": "Stable Diffusion 3",
    "stable-diffusion-3": "Stable Diffusion 3",
    "flux2": "FLUX.2",
    "flux-2": "FLUX.2",
    "flux_2": "FLUX.2",
    "flux.2": "FLUX.2",
    "flux": "FLUX.1",
    "flex": "Flex",
    "lumina": "Lumina",
    "qwen": "Qwen-Image",
    "zimage": "Z-Image",
    "z-image": "Z-Image",
}
"""how ss_base_model_version and modelspec.architecture of each line begin"""
_OTHER_KEYS = {
    "lora_te2_": "Stable Diffusion XL",
    "text_encoder_2.": "Stable Diffusion XL",
    "lora_unet_input_blocks_": "Stable Diffusion XL",
    "lora_unet_double_blocks_": "FLUX.1",
    "lora_unet_joint_blocks_": "Stable Diffusion 3",
    "transformer.": "a transformer model",
    "diffusion_model.": "a transformer model",
}


def made_for_another(adapter: layouts.AdapterFile, facts: Facts) -> str:
    """A sentence when the file's metadata or names say another base than this; else empty."""
    line, here, _ = families.family_class(facts.family).published(facts)
    said = adapter.metadata.get("ss_base_model_version", "")
    architecture = adapter.metadata.get("modelspec.architecture", "")
    told = (said.lower(), architecture.lower())
    other = next((name for start, name in _LINES.items() if any(t.startswith(start) for t in told)), line)
    if other != line:
        return f"the adapter was made for {other} ({said or architecture}), the base is {here}"
    if said.startswith("sd_v") and said != here:
        return f"the adapter was made for {said}, the base is {here} (v: it predicts v, else epsilon)"
    for prefix, name in _OTHER_KEYS.items():
        key = next((key for key in adapter.unused if key.startswith(prefix)), "")
        if key and name != line and not (name.startswith("FLUX") and line.startswith("FLUX")):
            return f"the adapter was made for {name} (it holds {key}), the base is {here}"
    return ""
