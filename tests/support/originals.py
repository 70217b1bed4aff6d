"""Weights of small Stable Diffusion models under the names that the original code gives them."""

import re

import torch
from torch import Tensor

from finetune.families.sdxl import sgm_path


def unet_to_ldm(name: str) -> str:
    """The original code's name, without prefix: three entries a level, counted through."""
    ends = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    ends |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    module, _, kind = name.rpartition(".")
    if module in ends:
        return f"{ends[module]}.{kind}"
    stage, inner = re.fullmatch(r"(mid_block|(?:down|up)_blocks\.\d)\.(.*)", name).groups()
    family, number, rest = re.fullmatch(r"(\w+)\.(\d)\.(.*)", inner).groups()
    level, entry, column = int(stage[-1]) if stage[-1].isdigit() else 0, int(number), 1
    if family == "resnets":
        column = 0
        parts = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
        parts |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
        part, _, kind = rest.partition(".")
        rest = f"{parts[part]}.{kind}"
    if stage == "mid_block":
        return f"middle_block.{2 * entry if family == 'resnets' else 1}.{rest}"
    if family == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op.{kind}"
    if family == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.conv.{kind}"
    if stage.startswith("down"):
        return f"input_blocks.{3 * level + entry + 1}.{column}.{rest}"
    return f"output_blocks.{3 * level + entry}.{column}.{rest}"


def vae_to_ldm(name: str, weight: Tensor) -> tuple[str, Tensor]:
    """The decoder's levels are numbered from the image up; attention is 1x1 convolutions."""
    new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
    new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
    new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", new)
    new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", new)
    new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
    if "mid_block.attentions.0" in new:
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        new = new.replace("to_out.0", "proj_out").replace("to_q", "q").replace("to_k", "k").replace("to_v", "v")
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
    return f"first_stage_model.{new}", weight


def clip_to_ldm(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    file = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in plain.items()}
    return file | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip_to_ldm(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, q, k and v fused, and the last layer that 2.x never runs."""
    file: dict[str, Tensor] = {"logit_scale": torch.tensor(4.6), "text_projection": torch.rand(32, 32)}
    outer = {"embeddings.token_embedding.weight": "token_embedding.weight"}
    outer |= {"embeddings.position_embedding.weight": "positional_embedding"}
    outer |= {"final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inner |= {"self_attn.out_proj": "attn.out_proj"}
    for name, weight in plain.items():
        if name in outer:
            file[outer[name]] = weight
            continue
        layer, module, kind = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name).groups()
        block = f"transformer.resblocks.{layer}"
        if module in inner:
            file[f"{block}.{inner[module]}.{kind}"] = weight
        elif module == "self_attn.q_proj":
            thirds = [plain[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            file[f"{block}.attn.in_proj_{kind}"] = torch.cat(thirds)
    first = "transformer.resblocks.0."
    file |= {k.replace(first, "transformer.resblocks.23."): v for k, v in file.items() if k.startswith(first)}
    return {f"cond_stage_model.model.{k}": v for k, v in file.items()}


def in_sgm_names(unet: torch.nn.Module) -> dict[str, Tensor]:
    places = {n for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    ours = {}
    for name, tensor in unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        # norms carry no adapter, so that their names are the test's own business
        written = f"{sgm_path(module)}.{kind}" if module in places else _norm(name)
        ours[f"model.diffusion_model.{written}"] = tensor
    return ours


def _norm(name: str) -> str:
    return name.replace("conv_norm_out", "out.0") if name.startswith("conv_norm_out") else unet_to_ldm(name)
