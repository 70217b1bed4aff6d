"""Stable Diffusion in one `.safetensors` file: what it is, told by its header, and its parts, loaded without a network.

The names inside are those of the original code (CompVis/stable-diffusion, Stability-AI/stablediffusion). diffusers'
own converters rename them; the published configs and CLIP's merges ship in `configs/`.
Shapes: b batch, h w latent cells, c latent channels, n tokens, d text width.
"""

import gzip
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from finetune import reading
from finetune import tensors as weights
from finetune.diffusion.process import Prediction
from finetune.errors import BaseError
from finetune.families import claims, parts, stored
from finetune.families.folder import Part, Tokenizer
from finetune.families.identify import (
    CLIP,
    SDXL_CLIP,
    SDXL_OPEN_CLIP,
    UNET,
    VAE,
    WHOLE,
    Variant,
    identify,
    other_layout,
)
from finetune.families.parts import empty_module, load_strict
from finetune.families.probe import probe_prediction

Named = Mapping[str, Tensor]

CONFIGS = Path(__file__).parent / "configs"
OPEN_CLIP = f"{CLIP}model."
_OF_PART = {
    "unet": (UNET,), "vae": (VAE, "vae."), "text_encoder": (CLIP, SDXL_CLIP), "text_encoder_2": (SDXL_OPEN_CLIP,)
}  # fmt: skip
"""how the names of a part begin"""
_TITLES = {"unet": "UNet", "vae": "VAE"}

_TRAINED = "single files are read of Stable Diffusion 1.x, 2.x and XL, other families as diffusers folders"
_HARMLESS = re.compile(
    r"position_ids$|logit_scale$|^cond_stage_model\..*text_projection(\.weight)?$|attn_mask$"
    r"|^first_stage_model\.(loss|model_ema)\."
)


class Checkpoint(NamedTuple):
    """A base in one file, known by its header alone."""

    path: Path
    variant: Variant
    prediction: Prediction | None
    """None: not written in the file, to be probed once the weights are read"""
    likely: Prediction
    """prediction, or the best guess without a forward pass"""
    zero_snr: bool
    resolution: int
    """px of a square the base was made for"""
    evidence: str
    unused: tuple[str, ...] = ()
    """names at the top of the file that nothing reads"""
    title: str = ""
    """that its metadata gives it"""


def config_folder(variant: Variant) -> Path:
    """The published configs of a line, laid out as a diffusers folder without weights."""
    return CONFIGS / variant


def open_checkpoint(path: Path) -> Checkpoint:
    """What a single file is; of its weights nothing is read but a vector that tells v from epsilon, and its schedule.

    Raises:
        BaseError: not there, pickled, truncated, packed, an adapter, or of a family or kind this version does not
        train.
    """
    header = stored.read_header(path)
    kind = identify(header)
    if kind.variant is None:
        raise BaseError(f"{path} is {kind.title}; {_TRAINED}", kind.hint)
    usual = parts.config(config_folder(kind.variant) / "unet" / "config.json")
    if other := other_layout(header.shapes, usual):
        raise BaseError(
            f"{path} is {kind.title} with another UNet, as SSD-1B, Vega and KOALA have: transformers {other} deep",
            "give it as a diffusers folder, whose configuration says what it is",
        )
    said = claims.claims(path, header, kind.variant)
    likely = claims.likely(path, header, said)
    return Checkpoint(
        path=path,
        variant=kind.variant,
        prediction=said.prediction,
        likely=likely,
        zero_snr=said.zero_snr,
        resolution=_resolution(header, kind.variant, likely),
        evidence=f"the names in {path.name}: {kind.title}; {said.evidence}",
        unused=tuple(claims.unused(header, tuple(prefix for own in _OF_PART.values() for prefix in own))),
        title=header.metadata.get("modelspec.title", ""),
    )


def probe(unet: nn.Module) -> Prediction | None:
    """What a silent file's UNet predicts, by a forward pass; None: that cannot be told."""
    try:
        return probe_prediction(unet)
    except BaseError:
        return None


class SingleFile:
    """The parts of a base in one file, each read from it when it is asked for; configs: as `config_folder`'s.

    Raises:
        BaseError: as `open_checkpoint`.
    """

    def __init__(self, path: Path, configs: Path | None = None) -> None:
        self.opened = open_checkpoint(path)
        self.configs = configs or config_folder(self.opened.variant)

    def config(self, part: str) -> dict[str, Any]:
        found = parts.config(self.configs / part / "config.json")
        if part == "unet":
            found["sample_size"] = self.opened.resolution // 2 ** (len(self.config("vae")["block_out_channels"]) - 1)
        return found

    def load(self, name: str, part: Part, dtype: torch.dtype, bits: int | None = None) -> nn.Module:
        """Raises BaseError: weights are missing, of the wrong shape, or not of this model."""
        path, config = self.opened.path, self.config(name)
        module = empty_module(partial(part.built, config))
        tensors = weights.load_tensors(path, partial(_belongs, name))
        tensors = {stored.plain_name(n): tensor for n, tensor in tensors.items()}
        try:
            named = _renamed(name, tensors, module, config)
        except KeyError as e:  # diffusers' converters look some biases up
            raise BaseError(f"{path}: 1 weight is missing: {e.args[0]}", f"is the file whole? {WHOLE}") from e
        load_strict(module, named, dtype, f"{path}: {_TITLES.get(name, name.replace('_', ' '))}", WHOLE)
        return module

    def tokenizer(self, tokenizer: Tokenizer) -> Any:
        return load_tokenizer(self.opened.variant, self.configs, tokenizer.folder)

    def scheduler(self) -> dict[str, Any]:
        found = parts.config(self.configs / "scheduler" / "scheduler_config.json")
        found["prediction_type"] = {"epsilon": "epsilon", "v": "v_prediction"}[self.opened.likely]
        if self.opened.zero_snr:
            # PNDM cannot rescale its betas; the last step must be in the schedule (arXiv:2305.08891)
            found |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return found


def _belongs(part: str, name: str) -> bool:
    plain = stored.plain_name(name)
    return plain.startswith(_OF_PART[part]) and not _HARMLESS.search(plain)


def load_tokenizer(variant: Variant, configs: Path | None = None, part: str = "tokenizer") -> Any:
    """One of the line's tokenizers: CLIP's, unless the configs carry a vocabulary of their own."""
    from transformers import CLIPTokenizer

    own = (configs or config_folder(variant)) / part
    if any(reading.is_file(own / name) for name in ("vocab.json", "tokenizer.json")):
        return CLIPTokenizer.from_pretrained(str(own), local_files_only=True)
    merges = clip_merges()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer_config.json").write_bytes((own / "tokenizer_config.json").read_bytes())
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(clip_vocabulary(merges)), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def clip_merges() -> list[str]:
    """The 48,894 merges of CLIP's byte-pair encoding, first to last."""
    text = gzip.decompress((CONFIGS / "clip" / "merges.txt.gz").read_bytes()).decode()
    return text.splitlines()[1:]


def clip_vocabulary(merges: list[str]) -> dict[str, int]:
    """token -> id by CLIP's rule: each byte, each byte that ends a word, each merge, then start and end."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]  # bytes without a glyph borrow one from 256 on
    letters = [chr(b) for b in visible] + [chr(256 + i) for i in range(len(hidden))]
    tokens = [*letters, *(f"{c}</w>" for c in letters), *("".join(m.split()) for m in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def _resolution(header: weights.Header, variant: Variant, prediction: Prediction) -> int:
    """px, from modelspec.resolution when it is a square, else what the line was published at."""
    square = re.fullmatch(r"(\d{3,4})x\1", header.metadata.get("modelspec.resolution", ""))
    if square and int(square[1]) % 64 == 0:
        return int(square[1])
    if variant == "sdxl":
        return 1024
    return 768 if (variant, prediction) == ("sd2", "v") else 512


def _renamed(name: str, tensors: Named, module: nn.Module, config: dict[str, Any]) -> dict[str, Tensor]:
    """A part's weights in diffusers' names. Raises KeyError: one that its converter looks up is missing."""
    if name == "unet":
        return _unet_weights(tensors, config)
    return _vae_weights(tensors, config) if name == "vae" else _text_weights(tensors, name, module)


def _unet_weights(tensors: Named, config: dict[str, Any]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    return _convert(_under(tensors, UNET), lambda own: convert_ldm_unet_checkpoint(own, config=config))


def _vae_weights(tensors: Named, config: dict[str, Any]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    own = _under(tensors, VAE) or _under(tensors, "vae.")
    return _convert(own, lambda own: convert_ldm_vae_checkpoint(own, config=config))


def _text_weights(tensors: Named, name: str, module: nn.Module) -> dict[str, Tensor]:
    """A text encoder's weights, under the names this transformers uses: 5.6 dropped the level `text_model`."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    if name == "text_encoder_2":
        named = _convert(
            _under(tensors, SDXL_OPEN_CLIP),
            lambda own: convert_open_clip_checkpoint(module, own, prefix=f"{SDXL_OPEN_CLIP}model."),
        )
    elif any(name.startswith(OPEN_CLIP) for name in tensors):
        used = _penultimate(_under(tensors, CLIP), cast(Any, module).config.num_hidden_layers)
        named = _convert(used, lambda own: convert_open_clip_checkpoint(module, own))
    else:
        named = _convert(_under(tensors, CLIP) or _under(tensors, SDXL_CLIP), convert_ldm_clip_checkpoint)
    level = "text_model." if hasattr(module, "text_model") else ""
    outside = ("text_projection.", "conditioner.")
    return {n if n.startswith(outside) else level + n.removeprefix("text_model."): t for n, t in named.items()}


def _penultimate(own: Named, layers: int) -> dict[str, Tensor]:
    """2.x reads OpenCLIP's last layer but one, so files hold a layer more than the model has."""
    last = f"{OPEN_CLIP}transformer.resblocks.{layers}."
    return {name: tensor for name, tensor in own.items() if not name.startswith(last)}


def _under(tensors: Named, prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _convert(own: dict[str, Tensor], rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The renamed weights, and those that diffusers' converter would drop without a word, under their own names."""
    found = {name: tensor for name, tensor in rename(own).items() if tensor is not None}
    used = {tensor.data_ptr() for tensor in found.values()}
    split = (".in_proj_weight", ".in_proj_bias", ".text_projection")  # the converter copies, of the first two thirds
    return found | {n: t for n, t in own.items() if t.data_ptr() not in used and not n.endswith(split)}
