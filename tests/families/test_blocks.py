"""The repeated blocks that a family names are those that its denoiser runs one after the other."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support.bases import Variant, tiny_base
from torch import nn

from finetune import families
from finetune.families import quantised, single_file
from finetune.families.base import Conditioning, read
from finetune.families.blocks import block_names

CONFIGS = Path(__file__).parent / "configs"
TRUE_SIZE = {
    # family, configs, how many blocks
    "sd1": ("sd", single_file.CONFIGS / "sd1", 4 + 1 + 4),
    "sd2": ("sd", single_file.CONFIGS / "sd2", 4 + 1 + 4),
    "sdxl": ("sdxl", single_file.CONFIGS / "sdxl", 3 + 1 + 3),
    "sd3.5-large": ("sd3", CONFIGS / "sd3.5-large", 38),
    "flux-dev": ("flux", CONFIGS / "flux-dev", 19 + 38),
    "z-image": ("zimage", CONFIGS / "z-image", 2 + 2 + 30),
    "qwen-image": ("qwen_image", CONFIGS / "qwen-image", 60),
    "flux2-klein-4b": ("flux2", CONFIGS / "flux2-klein-4b", 5 + 20),
}


@pytest.mark.parametrize("line", TRUE_SIZE)
def test_blocks_of_true_size_are_as_many_as_published_and_hold_nearly_all_weights(line: str) -> None:
    name, configs, count = TRUE_SIZE[line]
    family = families.family_class(name)
    denoiser = family.on_meta(str(configs), families.detect("pocket"))[family.denoiser_name]  # it asks no fact
    blocks = block_names(denoiser, family.blocks)
    assert len(blocks) == len(set(blocks)) == count and all(block_names(denoiser, [p]) for p in family.blocks)
    inside = sum(p.numel() for block in blocks for p in denoiser.get_submodule(block).parameters())
    assert inside > 0.94 * sum(p.numel() for p in denoiser.parameters())


@pytest.mark.parametrize("variant", get_args(Variant))
def test_small_blocks_are_run_in_their_order_and_hold_the_linear_layers_of_4_bits(
    variant: Variant, tmp_path: Path
) -> None:
    family = families.load(str(tiny_base(tmp_path / "base", variant)))
    denoiser: Any = family.parts[family.denoiser_name]
    names = block_names(denoiser, family.blocks)
    ran = list[str]()
    for name in names:
        denoiser.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    recomputed = set[nn.Module]()

    def checkpoint(block: Any, *inputs: Any, **more: Any) -> Any:
        recomputed.add(block)
        return block(*inputs, **more)

    denoiser.enable_gradient_checkpointing(checkpoint)
    shape = family.facts.latent_shape(2 * family.facts.stride, 2 * family.facts.stride)
    family.predict(torch.randn(1, *shape), family.process.at(torch.tensor([0.5])), Conditioning(read(family, ["a"])))
    assert ran == names
    parts_of_blocks = {m for name in names for m in denoiser.get_submodule(name).modules()}
    assert recomputed <= parts_of_blocks
    if family.denoiser_name == "transformer":
        assert recomputed == {denoiser.get_submodule(name) for name in names}
    linear = {name for name, module in denoiser.named_modules() if type(module) is nn.Linear}
    assert quantised.layers(denoiser, family.blocks).keys() == {n for n in linear if re.search(r"\.\d+\.", n)}
