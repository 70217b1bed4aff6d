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
from typing import Any, Literal, NamedTuple, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from finetune import reading
from finetune import tensors as weights
from finetune.diffusion.process import Prediction
from finetune.errors import BaseError
from finetune.families import parts
from finetune.families.folder import Part, Tokenizer
from finetune.families.parts import empty_module, load_strict

Variant = Literal["sd1", "sd2", "sdxl"]
Named = Mapping[str, Tensor]

CONFIGS = Path(__file__).parent / "configs"
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OPEN_CLIP = f"{CLIP}model."
SDXL_CLIP, SDXL_OPEN_CLIP = "conditioner.embedders.0.", "conditioner.embedders.1."
_OF_PART = {
    "unet": (UNET,), "vae": (VAE, "vae."), "text_encoder": (CLIP, SDXL_CLIP), "text_encoder_2": (SDXL_OPEN_CLIP,)
}  # fmt: skip
"""how the names of a part begin"""
_TITLES = {"unet": "UNet", "vae": "VAE"}

_TRAINED = "single files are read of Stable Diffusion 1.x, 2.x and XL, other families as diffusers folders"
_WHOLE = "give a Stable Diffusion 1.x, 2.x or XL checkpoint that holds UNet, VAE and text encoders"
_COMPOSED = 'write "BASE + FILE": a diffusers folder or hub id of that line, and this file for its denoiser'
_ITS_BASE = "give the base it was made for; inspect an adapter file to see what it holds"
_SAY_IT = 'set objective.prediction to "epsilon" or "v": the page the base came from says which'

_FOREIGN = (
    (r"lora_(up|down|A|B)\b|\.lora\.|^lora_|hada_w1|lokr_w|dora_scale|\boft_", "a LoRA or other adapter", _ITS_BASE),
    (r"^emb_params$|^string_to_param|^clip_[lg]$", "a textual-inversion embedding", _ITS_BASE),
    (r"^control_model\.|controlnet_cond_embedding|^input_hint_block", "a ControlNet", _ITS_BASE),
    (r"motion_modules\.", "an AnimateDiff motion module", _ITS_BASE),
    (r"joint_blocks\.\d", "a Stable Diffusion 3 checkpoint", _COMPOSED),
    (r"single_stream_modulation\.", "a FLUX.2 checkpoint", _COMPOSED),
    (r"distilled_guidance_layer\.", "a Chroma checkpoint", _WHOLE),
    (r"double_blocks\.\d+\.img_|single_transformer_blocks\.", "a FLUX checkpoint", _COMPOSED),
    (r"cap_embedder\.", "a Lumina or Z-Image checkpoint", _COMPOSED),
    (r"^(model\.diffusion_model\.)?blocks\.\d+\.cross_attn\.", "a Wan or Sana checkpoint", _WHOLE),
    (r"^(down|up)_blocks\.\d", "a bare UNet in diffusers names", _COMPOSED),
    (r"^(encoder|decoder)\.(conv_in|mid)", "a bare VAE", _WHOLE),
    (r"^(text_model|encoder\.layers|transformer\.resblocks)\b", "a bare text encoder", _WHOLE),
)
_WIDE = {5: "a depth base", 7: "an upscaler", 8: "an InstructPix2Pix base", 9: "an inpainting base"}
_HARMLESS = re.compile(
    r"position_ids$|logit_scale$|^cond_stage_model\..*text_projection(\.weight)?$|attn_mask$"
    r"|^first_stage_model\.(loss|model_ema)\."
)
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v"}


class Kind(NamedTuple):
    """What the names in a file say it is."""

    variant: Variant | None
    """None: nothing this version trains"""
    title: str
    """what it is, with its article"""
    hint: str = _WHOLE


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


def config_folder(variant: Variant) -> Path:
    """The published configs of a line, laid out as a diffusers folder without weights."""
    return CONFIGS / variant


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
        title = _WIDE.get(entry[1], f"a base whose UNet takes {entry[1]} channels")
        return Kind(None, title, "train on the text-to-image base of the same line; the adapter works on both")
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


def _sdxl(shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    if not any(name.startswith(SDXL_OPEN_CLIP) for name in shapes):
        return Kind(None, "an SDXL refiner, or a checkpoint in sgm names")
    for prefixes, part in (((SDXL_CLIP,), "first text encoder"), ((VAE, "vae."), "VAE")):
        if not any(name.startswith(prefixes) for name in shapes):
            return Kind(None, f"an SDXL checkpoint without its {part}")
    return Kind("sdxl", "a Stable Diffusion XL checkpoint")


def open_checkpoint(path: Path) -> Checkpoint:
    """What a single file is; no weights are read but, of a 2.x file that does not say what it predicts, one vector.

    Raises:
        BaseError: not there, pickled, truncated, an adapter, or of a family or kind this version does not train.
    """
    header = weights.read_header(path)
    kind = identify(header)
    if kind.variant is None:
        raise BaseError(f"{path} is {kind.title}; {_TRAINED}", kind.hint)
    prediction, told = _prediction(header, kind.variant)
    likely = prediction or _likely(path, header)
    return Checkpoint(
        path=path,
        variant=kind.variant,
        prediction=prediction,
        likely=likely,
        zero_snr="ztsnr" in header.shapes and likely == "v",
        resolution=_resolution(header, kind.variant, likely),
        evidence=f"the names in {path.name}: {kind.title}; {told}",
    )


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

    def files(self, name: str, part: Part) -> list[Path]:
        return [self.opened.path]

    def load(self, name: str, part: Part, dtype: torch.dtype, bits: int | None = None) -> nn.Module:
        """Raises BaseError: weights are missing, of the wrong shape, or not of this model."""
        path, config = self.opened.path, self.config(name)
        module = empty_module(partial(part.built, config))
        tensors = weights.load_tensors(path, lambda n: n.startswith(_OF_PART[name]) and not _HARMLESS.search(n))
        try:
            named = _renamed(name, tensors, module, config)
        except KeyError as e:  # diffusers' converters look some biases up
            raise BaseError(f"{path}: 1 weight is missing: {e.args[0]}", f"is the file whole? {_WHOLE}") from e
        load_strict(module, named, dtype, f"{path}: {_TITLES.get(name, name.replace('_', ' '))}", _WHOLE)
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


@torch.no_grad()
def probe_prediction(unet: nn.Module, context: Tensor | None = None) -> Prediction:
    """What a UNet predicts, by one forward pass on pure noise at the last timestep.

    There epsilon is the input itself, and v is nearly -x0, which pure noise says nothing about. context (1, n, d): the
    empty caption's states; zeros when not given.

    Raises:
        BaseError: the output is neither clearly like the input nor clearly unlike it.
    """
    config = cast(Any, unet).config
    first = next(unet.parameters())
    noise = torch.randn(2, config.in_channels, 32, 32, generator=torch.Generator().manual_seed(0)).to(first)
    tokens = torch.zeros(1, 77, config.cross_attention_dim) if context is None else context
    output = unet(noise, 999, encoder_hidden_states=tokens.to(first).expand(2, -1, -1), return_dict=False)[0]
    likeness = torch.corrcoef(torch.stack([noise.flatten(), output.flatten()]).float())[0, 1].item()
    if likeness > 0.8:
        return "epsilon"
    if abs(likeness) < 0.5:
        return "v"
    raise BaseError(
        f"what the base predicts cannot be told: at pure noise its output is {likeness:.2f} like its input, "
        "where epsilon gives about 1 and v about 0",
        _SAY_IT,
    )


def _prediction(header: weights.Header, variant: Variant) -> tuple[Prediction | None, str]:
    """What the file says it predicts, and where; None when it says nothing that decides."""
    claims = _claims(header)
    said = {prediction for prediction, _ in claims}
    if len(said) == 1:
        return claims[0][0], f"predicts {claims[0][0]} by its {claims[0][1]}"
    if said:
        return None, "its " + " and ".join(where for _, where in claims) + " contradict each other"
    if variant != "sd2":
        return "epsilon", f"predicts epsilon as {'1.x' if variant == 'sd1' else 'XL'} does: no v_pred key"
    return None, "2.x files do not say what they predict"


def _claims(header: weights.Header) -> list[tuple[Prediction, str]]:
    """ComfyUI's marker key, and modelspec.* as kohya and ComfyUI write it."""
    found: list[tuple[Prediction, str]] = []
    if "v_pred" in header.shapes:
        found.append(("v", "v_pred key"))
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        said = header.metadata.get(key, "").lower().replace("-", "_")
        if said in _PREDICTIONS:
            found.append((_PREDICTIONS[said], f"{key} {said!r}"))
    architecture = header.metadata.get("modelspec.architecture", "")
    if architecture.endswith(("v2-512", "768-v")):
        found.append(("v" if architecture.endswith("-v") else "epsilon", f"modelspec.architecture {architecture!r}"))
    return found


def _likely(path: Path, header: weights.Header) -> Prediction:
    """ComfyUI's tell (supported_models.py, SD20): in v models the biases of the last attention have spread out."""
    name = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if name not in header.shapes:
        return "epsilon"
    with safe_open(path, framework="pt") as file:
        spread: float = file.get_tensor(name).float().std(correction=0).item()
    return "v" if spread > 0.09 else "epsilon"


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
