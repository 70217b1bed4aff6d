"""What was distilled into a base, by what it carries: training may undo it, so it is asked for by name.

Sources: latent consistency models arXiv:2310.04378; adversarial diffusion distillation (Turbo) arXiv:2311.17042;
SDXL-Lightning arXiv:2402.13929.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_FEW_STEPS = {"LCMScheduler": "LCM's", "TCDScheduler": "TCD's"}
_TURBO = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
"""of SD-Turbo and SDXL-Lightning, and of SDXL-Turbo; at the trailing timesteps that few steps need"""
_WORDS = re.compile(
    r"(?<![a-z])(turbo|lightning|schnell|lcm|tcd|dmd2?|hyper[-_ ]?sd(?:xl)?|sdxs|distill(?:ed)?)(?![a-z])"
)
_UNDONE = re.compile(r"(?<![a-z])(un|de|not?)[-_ ]?distill")


def by_config(denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
    """Of a base with a UNet, by its configs; empty: nothing.

    Trailing timesteps alone say nothing: a base whose path ends in pure noise needs them, too (arXiv:2305.08891).
    """
    name = str(scheduler.get("_class_name"))
    if denoiser.get("time_cond_proj_dim"):
        return "guidance (its UNet is told a guidance scale, as latent-consistency models are)"
    if name in _FEW_STEPS:
        return f"few steps (its scheduler is {_FEW_STEPS[name]})"
    plain = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    if plain and name in _TURBO and scheduler.get("timestep_spacing") == "trailing":
        return f"few steps (its scheduler is a Turbo model's: {name}, timestep_spacing trailing)"
    return ""


def by_name(names: Iterable[str]) -> str:
    """Of any base, by the names that it goes by; of a path the last part; empty: nothing."""
    for name in names:
        last = name.rstrip("/").replace("\\", "/").rpartition("/")[2]
        word = _WORDS.search(last.lower())
        if word and not _UNDONE.search(last.lower()):
            return f"few steps (it is called {last})"
    return ""
