"""`BASE + FILE`: a base whose denoiser comes from a file, in diffusers' names or in those of the original code."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families.cases import USUAL
from safetensors.torch import load_file, save_file
from support.bases import Variant, released_is_freed, tiny_base
from support.bench import settled
from support.originals import in_sgm_names
from support.photos import pictures
from support.runs import train
from torch import Tensor

from finetune import families, recipe
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.errors import BaseError
from finetune.families.base import Family
from finetune.recipe import Loaded


def as_it_is(family: Family) -> dict[str, Tensor]:
    return dict(family.parts[family.denoiser_name].state_dict())


def prefixed(family: Family) -> dict[str, Tensor]:
    return {f"diffusion_model.{name}": tensor for name, tensor in as_it_is(family).items()}


def sgm(family: Family) -> dict[str, Tensor]:
    return in_sgm_names(family.parts["unet"])


def z_image(family: Family) -> dict[str, Tensor]:
    """Queries, keys and values in one, and the names of the published code."""
    state, made = as_it_is(family), {}
    for name, tensor in state.items():
        new = name.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")
        new = new.replace("norm_q", "q_norm").replace("norm_k", "k_norm").replace("to_out.0", "out")
        if ".to_q." in name:
            made[new.replace("to_q", "qkv")] = torch.cat([state[name.replace("to_q", f"to_{x}")] for x in "qkv"])
        elif ".to_k." not in name and ".to_v." not in name:
            made[new] = tensor
    return made


_FLUX2_NORMS = {
    r"single_transformer_blocks\.(\d+)\.attn\.norm_(\w)": r"single_blocks.\1.norm.\2",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_(\w)": r"double_blocks.\1.txt_attn.norm.\2",
    r"transformer_blocks\.(\d+)\.attn\.norm_(\w)": r"double_blocks.\1.img_attn.norm.\2",
    r"norm\.q\.weight": "norm.query_norm.scale",
    r"norm\.k\.weight": "norm.key_norm.scale",
}


def flux2(family: Family) -> dict[str, Tensor]:
    """The names of the published code: the family's map, and the norms, which carry no adapter."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in as_it_is(family).items():
        found = family.original(f"transformer.{name.removesuffix('.weight')}")
        for ours, theirs in _FLUX2_NORMS.items():
            name = re.sub(ours, theirs, name)
        new, piece = (f"{found.name}.weight", found.piece) if found else (name, 0)
        pieces.setdefault(new, []).append((piece, tensor))
    made = {name: torch.cat([t for _, t in sorted(found, key=lambda f: f[0])]) for name, found in pieces.items()}
    scale, shift = made.pop("norm_out.linear.weight").chunk(2)
    return made | {"final_layer.adaLN_modulation.1.weight": torch.cat([shift, scale])}


def all_in_one(family: Family) -> dict[str, Tensor]:
    """As user interfaces save a whole model; its other parts are not the base's, and not read."""
    made = {f"model.diffusion_model.{name}": tensor for name, tensor in as_it_is(family).items()}
    made |= {f"vae.{n}": t for n, t in family.parts["vae"].state_dict().items()}
    return made | {f"text_encoders.clip_l.{n}": t for n, t in family.parts["text_encoder"].state_dict().items()}


WRITERS: dict[str, tuple[Callable[[Family], dict[str, Tensor]], ...]] = {
    "sdxl": (as_it_is, sgm), "sd3": (as_it_is, all_in_one), "flux": (prefixed, all_in_one), "zimage": (z_image,),
    "qwen_image": (prefixed,), "flux2": (prefixed, flux2),
}  # fmt: skip
"""files as they are met; of Stable Diffusion 1 and 2 whole models are, see `test_single_file.py`"""
MET = [(case.variant, names) for case in USUAL if case.family != "sd" for names in WRITERS[case.family]]


@pytest.mark.parametrize(("variant", "names"), MET)
def test_the_denoiser_is_the_files_and_all_else_the_bases(
    variant: Variant, names: Callable[[Family], dict[str, Tensor]], tmp_path: Path
) -> None:
    base, other = (tiny_base(tmp_path / name, variant, seed) for name, seed in (("base", 0), ("other", 1)))
    theirs, own = families.load(str(other)), families.load(str(base))
    save_file({k: v.clone().contiguous() for k, v in names(theirs).items()}, tmp_path / "tune.safetensors")
    both = families.load(f"{base} + {tmp_path / 'tune.safetensors'}")
    for part in own.parts:
        expected = (theirs if part == own.denoiser_name else own).parts[part].state_dict()
        found = both.parts[part].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), part
    assert both.facts == own.facts
    released_is_freed(both)


def test_a_run_on_it_is_proved_and_names_no_path(tmp_path: Path) -> None:
    base, other = (tiny_base(tmp_path / name, "flux", seed) for name, seed in (("base", 0), ("other", 1)))
    save_file(prefixed(families.load(str(other))), tmp_path / "tune.safetensors")
    plan = settled(base, pictures(tmp_path / "data"), train__steps=2, sample__steps=1, sample__prompts=("a",))
    written = f"{base} + {tmp_path / 'tune.safetensors'}"
    loaded = Loaded(recipe.replace(plan.recipe, base=written), {}, Path("recipe.toml"))
    result = train(loaded, tmp_path / "run")
    assert result.report is not None and result.report.hit == result.report.expected
    told = weights.read_header(result.path).metadata
    assert told["finetune.base"] == "base + tune.safetensors" == shipped.public_name(written)
    assert str(tmp_path) not in str(told)


def test_a_file_that_lacks_a_weight_or_is_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", "qwen")
    file = tmp_path / "tune.safetensors"
    save_file(prefixed(families.load(str(base))), file)
    tensors = load_file(file)
    tensors.pop("diffusion_model.proj_out.bias")
    save_file(tensors, file)
    with pytest.raises(BaseError, match=r"tune\.safetensors: 1 weight is missing: proj_out\.bias"):
        assert families.load(f"{base} + {file}").parts["transformer"]
    save_file({"transformer.a.lora_A.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(BaseError, match=r"at least 3 layers, and .*tune\.safetensors holds 1 tensors"):
        assert families.load(f"{base} + {file}").parts["transformer"]


def test_a_file_that_is_not_there_or_cut_short_is_told_at_once(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", "flux")
    with pytest.raises(BaseError, match=r"no file nowhere\.safetensors"):
        families.detect(f"{base} + nowhere.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(BaseError):
        families.detect(f"{base} + {tmp_path / 'cut.safetensors'}")
