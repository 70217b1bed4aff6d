"""A base's modules: loaded strictly, each when it is first asked for, and let go on request."""

import copy
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from finetune import reading
from finetune import tensors as weights
from finetune.errors import BaseError
from finetune.families import sizes, stored
from finetune.families.quantised import keep_packing, quantise
from finetune.machine import current_device
from finetune.unchanged import Stamps

_SAYS_NOTHING = ("dtype", "torch_dtype", "transformers_version", "architectures")
"""of a part's config: differs by library version and precision, and changes no output"""

OWN_FILE = "denoiser.safetensors"
"""in a denoiser's folder: weights that take the place of the base's own"""
_ORIGINAL_PREFIX = re.compile(r"^(model\.)?diffusion_model\.")
_OTHER_PARTS = ("text_encoders.", "conditioner.", "cond_stage_model.", "first_stage_model.", "vae.", "model_ema.")
"""of a file that holds a whole model: those are the base's"""
_OF_THIS_LINE = "give a file of this base's denoiser, as published or fine-tuned"


class Parts:
    """name -> module, frozen and in evaluation mode when loaded."""

    def __init__(
        self, loaders: Mapping[str, Callable[[], nn.Module]], files: Mapping[str, Iterable[Path]] = MappingProxyType({})
    ) -> None:
        """files: what each part is read from, which must stay as it is now."""
        self._stamps = {name: Stamps.of(some) for name, some in files.items()}
        self._loaders, self._loaded = dict(loaders), dict[str, nn.Module]()
        self._compiled: dict[str, Any] = {}
        self._quantised = dict[str, tuple[str, ...]]()

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._loaded:
            module = self._loaders[name]().requires_grad_(False).eval()
            if name in self._quantised:
                quantise(module, current_device(), self._quantised[name])
            module = _owned(module)
            if name in self._stamps:
                self._stamps[name].check()
            self._loaded[name] = module
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def hold(self, modules: Mapping[str, nn.Module]) -> None:
        """Take these for loaded."""
        self._loaded.update(modules)

    def loaded(self) -> dict[str, nn.Module]:
        """Those in memory now."""
        return dict(self._loaded)

    def quantise(self, name: str, blocks: Iterable[str]) -> None:
        """Hold the linear layers in a part's blocks in 4 bits from when it is loaded, on a GPU where there is one."""
        self._quantised[name] = tuple(blocks)
        if name in self._loaded:
            quantise(self._loaded[name], current_device(), self._quantised[name])

    def compile(self, name: str) -> None:
        """torch.compile a part for `called`."""
        self._compiled[name] = torch.compile(self[name])

    def called(self, name: str) -> Any:
        """A part, to be called: compiled while gradients are recorded; in evaluation torch would compile it anew."""
        return self._compiled[name] if name in self._compiled and torch.is_grad_enabled() else self[name]

    def load(self, *names: str) -> "Parts":
        """These (all, when none is named), now."""
        for name in names or self:
            self[name]
        return self

    def copied(self, dtype: torch.dtype) -> "Parts":
        """All of them, on the CPU, in another dtype."""
        return Parts({name: partial(_copy, self[name], dtype) for name in self}).load()

    def release(self, *names: str) -> None:
        """Let go of these: their memory is free, and they are loaded again when asked for."""
        for name in names:
            self._loaded.pop(name, None)

    def to(self, device: torch.device, *names: str) -> None:
        """Move those of these (of all, when none is named) that are in memory; quantised ones stay where they are."""
        for name in names or self._loaders:
            if name in self._loaded and not getattr(self._loaded[name], "is_quantized", False):
                self._loaded[name].to(device)


def float_dtype(module: nn.Module) -> torch.dtype:
    """Of the weights that are not held in fewer bits."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _owned(module: nn.Module) -> nn.Module:
    """What safetensors gives is mapped from the file, which may be overwritten: copy it."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():  # others were made by quantising, and have a second name for their bytes
            tensor.data = tensor.data.clone()
    return module


def _copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(module).to("cpu", dtype)


@contextmanager
def without_bars() -> Iterator[None]:
    """Transformers shows no progress of what it loads; afterwards as before."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def from_pretrained(kind: Any, path: Path, part: str, dtype: torch.dtype, bits: int | None = None) -> nn.Module:
    """A part of a diffusers folder, every weight there and of the right shape, none pickled; quantised to so many bits
    (a transformers model only), on a GPU where there is one.

    Raises:
        BaseError: it cannot be loaded whole.
    """
    if reading.is_file(path / part / OWN_FILE):
        return _from_own_file(kind, path / part, dtype)
    options = _quantised(bits, dtype) if bits else {}
    try:
        with without_bars():
            module, info = kind.from_pretrained(
                str(path), subfolder=part, torch_dtype=dtype, use_safetensors=True, local_files_only=True,
                output_loading_info=True, **options,
            )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as e:
        raise BaseError(f"{path / part} cannot be loaded: {str(e).splitlines()[0]}", "fetch the base again") from e
    missing = [k for k in info["missing_keys"] if not k.endswith("position_ids")]
    if missing or info["mismatched_keys"]:
        bad = [*missing, *info["mismatched_keys"]]
        raise BaseError(
            f"{path / part}: {len(bad)} weights are missing or misshapen, {bad[0]} first", "fetch the base again"
        )
    found: nn.Module = module
    keep_packing(found)
    return found


def empty_module(build: Callable[[], nn.Module]) -> nn.Module:
    """A module whose parameters are still on the meta device; its buffers, which no file holds, are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()


def load_strict(module: nn.Module, found: Mapping[str, Tensor], dtype: torch.dtype, where: str, whole: str) -> None:
    """Put weights into an empty module; every name and shape must agree, both ways. whole: what a file must hold.

    Raises:
        BaseError: says how many do not, and names the first.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    misshapen = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    for names, problem in ((missing, "missing"), (foreign, "not of this model"), (misshapen, "of another shape")):
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            count = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
            raise BaseError(f"{where}: {count} {problem}: {some}", f"is the file whole? {whole}")
    # a copy, because what safetensors gives is mapped from the file, which may be overwritten
    copies = {name: found[name].to(dtype, copy=True).contiguous() for name in expected}
    module.load_state_dict(copies, assign=True)
    module.eval()


def _from_own_file(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A denoiser whose weights are one file, in diffusers' or the original code's names."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    file = folder / OWN_FILE
    told = config(folder / "config.json")
    module = empty_module(partial(kind.from_config, told))
    named = weights.load_tensors(file, lambda name: not stored.plain_name(name).startswith(_OTHER_PARTS))
    tensors = {_ORIGINAL_PREFIX.sub("", stored.plain_name(name)): tensor for name, tensor in named.items()}
    if tensors.keys() - module.state_dict().keys():
        convert = SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
        # the converter of UNets wants the prefix, the others strip it, and FLUX.2's does not know it
        prefix = "model.diffusion_model." if kind.__name__ == "UNet2DConditionModel" else ""
        original = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        try:
            tensors = convert(original, config=told)
        except (KeyError, IndexError, ValueError, RuntimeError, AssertionError) as e:
            raise BaseError(f"{file.resolve().name} is no {kind.__name__}: {e}", _OF_THIS_LINE) from e
    load_strict(module, tensors, dtype, file.resolve().name, _OF_THIS_LINE)
    return module


def _quantised(bits: int, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": how, "device_map": {"": current_device()}}


def fingerprint(module: nn.Module, *also: object) -> str:
    """A short hash of configuration, weights, and all else that decides what a part computes."""
    config: Any = module.config
    facts = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    told = {k: v for k, v in facts.items() if not k.startswith("_") and k not in _SAYS_NOTHING}
    if also:
        told["also"] = also
    held: Any = getattr(module, "unrounded", None) or weights.fingerprint(module.state_dict())
    return weights.digest(json.dumps(told, sort_keys=True, default=str) + held)


def never_read(layer: nn.Module) -> None:
    """Mark a layer whose output the denoiser never reads: no adapter belongs there."""
    layer.never_read = True  # type: ignore[assignment]


def checkpoint_text(module: nn.Module) -> None:
    """Recompute a transformers encoder's activations in the backward pass."""
    text: Any = module  # transformers 5 gave the verb a new name
    enable = getattr(text, "activation_checkpointing_enable", None) or text.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def check_complete(path: Path) -> None:
    """Raises BaseError when a weight file, or one of those it was split into, is not there, pickled, cut short or
    packed; or when the configuration beside it cannot be of these weights."""
    files = weight_files(path)
    pickled = [p.name for p in path.parent.glob("*.bin")]
    if files == [path] and not reading.is_file(path) and pickled:
        raise BaseError(
            f"{path.parent} holds pickled weights only ({pickled[0]}), which can run code when opened: refused",
            "take the safetensors version of this model",
        )
    headers = {file: weights.read_header(file) for file in files}
    for file, header in headers.items():
        stored.refuse_packed(file.resolve(), header)
        if file.name != OWN_FILE:
            stored.refuse_wrapped(file, header)
    sizes.check_config(path.with_name("config.json"), [*headers.values()], files[0])


def weight_files(path: Path) -> list[Path]:
    """What `check_complete` looks at: one file of weights, or those it was split into."""
    index = path.with_name(f"{path.name}.index.json")
    if reading.is_file(path.with_name(OWN_FILE)):
        return [path.with_name(OWN_FILE)]
    if not reading.is_file(path) and reading.is_file(index):
        return [path.with_name(shard) for shard in _shards(index)]
    return [path]


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names.

    Raises:
        BaseError: it names none, or one outside of its folder.
    """
    named = config(index).get("weight_map")
    found = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    strange = [name for name in found if Path(name).name != name]
    if not found or strange:
        why = f"names {strange[0]!r}, which is not beside it" if strange else "names no files"
        raise BaseError(f"{index} {why}", "fetch the base again")
    return found


def check_vocabulary(folder: Path, *files: str) -> None:
    """transformers makes an empty tokenizer of a folder without a vocabulary, and all captions the same.

    Raises:
        BaseError: neither tokenizer.json nor all of `files` are there.
    """
    own = folder / "tokenizer.json"
    if reading.is_file(own):
        _check_own_vocabulary(Stamps.of([own]).files[own], own)
    elif not all(reading.is_file(folder / f) for f in files):
        raise BaseError(f"the base lacks its vocabulary: no {' and '.join(files)} in {folder}", "fetch it again")


@functools.cache
def _check_own_vocabulary(_stamp: tuple[int, ...], own: Path) -> None:
    """Once for a file as it is: a base is looked at several times in a run, and 50,000 words take half a second."""
    model = reading.read_json(own, BaseError, "fetch it again", finite=False, limit=reading.TEXT_BYTES).get("model")
    if not (isinstance(model, dict) and model.get("vocab")):
        raise BaseError(f"{own} holds no vocabulary", "fetch the base again")


def config(path: Path) -> dict[str, Any]:
    """A JSON table of a base. Raises BaseError when it is not there, or none."""
    if not reading.exists(path):
        raise BaseError(f"the base lacks {path.parent.name}/{path.name}", f"is {path.parent.parent} whole?")
    return reading.read_json(path, BaseError, "fetch the base again", finite=False)


def pipeline_name(path: Path) -> str:
    """The class that a diffusers folder is of; empty when it is no such folder."""
    index = path / "model_index.json"
    return str(config(index).get("_class_name", "")) if reading.is_file(index) else ""
