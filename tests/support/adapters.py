"""Random adapters, and the dense change that each means, by definition and not by any code of ours."""

from pathlib import Path

import torch
from torch import Tensor

from finetune import families
from finetune.adapters.change import AdapterState, target_shapes
from finetune.adapters.lora import Lora
from finetune.files import metadata
from finetune.proof import export

Deltas = dict[str, Tensor]


def random_lora(shape: tuple[int, ...], rank: int, scale: float, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    up = (shape[0], rank) + (1, 1) * (len(shape) == 4)
    return Lora(torch.randn(rank, *shape[1:], generator=generator), torch.randn(*up, generator=generator) * 0.3, scale)


def dense(modules: AdapterState) -> Deltas:
    """The reference, from the definition, and not by any code of ours."""
    products = {n: m.scale * (m.up.double().flatten(1) @ m.down.double().flatten(1)) for n, m in modules.items()}
    return {n: p.reshape(modules[n].up.shape[0], *modules[n].down.shape[1:]) for n, p in products.items()}


def small_adapter(seed: int, rank: int = 2) -> AdapterState:
    """A strong random change of some attention projections of both components."""
    chance = torch.Generator().manual_seed(seed)
    names = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v": (32, 32),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
        "text_encoder.text_model.encoder.layers.0.self_attn.v_proj": (32, 32),
    }
    made = {}
    for name, (out, width) in names.items():
        down, up = torch.randn(rank, width, generator=chance), torch.randn(out, rank, generator=chance)
        made[name] = Lora(down, up, 0.3)
    return made


def pocket_adapter(
    file: Path, seed: int, trigger: str = "sks", class_word: str = "mug", scale: float = 0.1
) -> AdapterState:
    """A file for the pocket base: a random change of some attention projections, with the words it says it learnt."""
    facts = families.detect("pocket")
    shapes = target_shapes(families.family_class(facts.family).on_meta(families.locate("pocket"), facts))
    names = [name for name in shapes if name.endswith(("attn2.to_v", "layers.0.self_attn.v_proj"))]
    modules: AdapterState = {n: random_lora(shapes[n], 2, scale, 100 * seed + i) for i, n in enumerate(names)}
    about = metadata.About.of(facts, base="pocket", trigger=trigger, class_word=class_word, title="A mug")
    export.write_file(modules, file, "universal", "float32", about)
    return modules
