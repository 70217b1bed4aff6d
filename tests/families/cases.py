"""The one table of what the tests of families ask about: each variant, its small base, its published structure."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from support import TESTS
from support.bases import Variant, tiny_base

from finetune.families.checkpoints import CONFIGS as SHIPPED_CONFIGS

CONFIGS = TESTS / "families" / "configs"
GIB = 2**30


class Published(NamedTuple):
    """A model of this structure that was published."""

    configs: Path
    parameters: int
    """of its denoiser, as its own weights have them"""

    @property
    def name(self) -> str:
        return self.configs.name


class LargeEncoder(NamedTuple):
    """The text encoder that is let go before training."""

    part: str
    build: Callable[[], torch.nn.Module]
    """at its true size; on the meta device"""
    parameters: float
    """as published, to a hundredth"""


def _t5_xxl() -> torch.nn.Module:
    sizes = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu"))


def _qwen3_4b() -> torch.nn.Module:
    sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    config = transformers.Qwen3Config(vocab_size=151936, num_key_value_heads=8, head_dim=128, **sizes)
    return transformers.Qwen3Model(config)


def _qwen25_vl_7b() -> torch.nn.Module:
    text = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


class Case(NamedTuple):
    """A row for each variant that has a small base of its own. Every test of families takes its cases from here."""

    family: str
    name: str
    """of the test's case"""
    variant: Variant
    """of the small base in `support.bases`"""
    scheduler: Mapping[str, object] = {}
    """what this variant's scheduler says otherwise"""
    usual: bool = False
    """stands for its family where one variant is enough; one of each family is"""
    published: tuple[Published, ...] = ()
    """the first is the one that recipes are for"""
    recipes: tuple[str, ...] = ()
    """first words of the recipes that train it"""
    resolution: int = 1024
    """px that it was made for"""
    decoder_gib: float | None = None
    """memory that its decoder takes there, as `test_real_size.py` measures it; None: that of SDXL and FLUX"""
    guessed_activations: int | None = None
    """bytes at that resolution, where only a real step can tell, from the sizes of its blocks"""
    large_encoder: LargeEncoder | None = None
    fused: bool = False
    """the original code has modules in one piece that diffusers has in several, and files in its names are met"""

    @property
    def decoding_gib(self) -> float:
        return self.decoder_gib or 4.1

    @property
    def transformer(self) -> bool:
        return self.family not in ("sd", "sdxl")


V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
T5 = (_t5_xxl, 4.76e9)
CASES = (
    Case("sd", "sd15", "sd15", usual=True, recipes=("pocket", "sd15"), resolution=512, decoder_gib=1.3,
         published=(Published(SHIPPED_CONFIGS / "sd1", 859_520_964),)),
    Case("sd", "sd21", "sd21", recipes=("sd21",), resolution=768, decoder_gib=2.5,
         published=(Published(SHIPPED_CONFIGS / "sd2", 865_910_724),)),
    Case("sdxl", "sdxl", "sdxl", usual=True, recipes=("sdxl",), decoder_gib=4.1,
         published=(Published(SHIPPED_CONFIGS / "sdxl", 2_567_463_684),)),
    Case("sdxl", "sdxl v", "sdxl", V),
    Case("sd3", "sd3", "sd3", published=(Published(CONFIGS / "sd3-medium", 2_028_328_000),)),
    Case("sd3", "sd3.5", "sd35", usual=True, recipes=("sd35",), large_encoder=LargeEncoder("text_encoder_3", *T5),
         fused=True, published=(Published(CONFIGS / "sd3.5-medium", 2_243_171_520),
                                Published(CONFIGS / "sd3.5-large", 8_056_627_520))),
    Case("flux", "dev", "flux", usual=True, recipes=("flux",), large_encoder=LargeEncoder("text_encoder_2", *T5),
         fused=True, decoder_gib=4.1, published=(Published(CONFIGS / "flux-dev", 11_901_408_320),)),
    Case("flux", "schnell", "schnell",
         published=(Published(CONFIGS / "flux-schnell", 11_891_178_560),)),
    Case("zimage", "zimage", "zimage", usual=True, recipes=("zimage",), guessed_activations=4 * GIB,
         large_encoder=LargeEncoder("text_encoder", _qwen3_4b, 4.02e9),
         published=(Published(CONFIGS / "z-image", 6_154_908_736),)),
    Case("zimage", "turbo", "turbo"),
    Case("qwen_image", "qwen", "qwen", usual=True, recipes=("qwen",), decoder_gib=8.4,
         large_encoder=LargeEncoder("text_encoder", _qwen25_vl_7b, 8.29e9),
         published=(Published(CONFIGS / "qwen-image", 20_430_401_088),)),
    Case("flux2", "klein base", "klein", usual=True, recipes=("klein",), fused=True,
         large_encoder=LargeEncoder("text_encoder", _qwen3_4b, 4.02e9),
         published=(Published(CONFIGS / "flux2-klein-4b", 3_875_544_576),)),
    Case("flux2", "klein", "klein-distilled"),
)  # fmt: skip
USUAL = tuple(case for case in CASES if case.usual)
TRANSFORMERS = tuple(case for case in USUAL if case.transformer)
OF_VARIANT = {case.variant: case for case in reversed(CASES)}
"""the first row of each small base"""
OF_RECIPE = {word: case for case in CASES for word in case.recipes}


def small_base(case: Case, path: Path, seed: int = 0) -> Path:
    """Write the case's small base at `path`."""
    return tiny_base(path, case.variant, seed, **case.scheduler)
