"""The models we can fine-tune: one file each, named here and nowhere else."""

import atexit
import functools
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finetune import reading
from finetune import resources as shipped
from finetune.errors import BaseError, InputError
from finetune.known import known
from finetune.later import put_off_optional
from finetune.resources import PLUS
from finetune.unchanged import files_in

if TYPE_CHECKING:
    import torch

    from finetune.families.base import BaseInfo, Family
    from finetune.recipe import Objective

put_off_optional()  # before anything imports diffusers

FAMILIES = {
    "sd": "finetune.families.sd:StableDiffusion",
    "sdxl": "finetune.families.sdxl:StableDiffusionXL",
    "sd3": "finetune.families.sd3:StableDiffusion3",
    "flux": "finetune.families.flux:Flux",
    "zimage": "finetune.families.zimage:ZImage",
    "qwen_image": "finetune.families.qwen_image:QwenImage",
    "flux2": "finetune.families.flux2:Flux2Klein",
}


def registry() -> dict[str, str]:
    """name -> module:class, ours and those that installed packages declare (entry point `finetune.families`) under
    names of their own."""
    return FAMILIES | {e.name: e.value for e in entry_points(group="finetune.families") if e.name not in FAMILIES}


def family_class(name: str) -> "type[Family]":
    # ours first: what packages declare is read from the metadata of all that are installed
    module, _, attribute = (FAMILIES.get(name) or registry()[name]).partition(":")
    found: type[Family] = getattr(import_module(module), attribute)
    return found


def detect(base: str) -> "BaseInfo":
    """What the base is, from its configs or its header; nothing heavy is read.

    Raises:
        BaseError: not there, broken, or of no family we know.
    """
    try:
        return _detected(base, locate(base))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        said = f"{type(e).__name__}: {str(e)[:100]}"
        raise BaseError(f"{base}: its configuration cannot be read ({said})", "fetch the base again") from e


def _detected(base: str, where: str) -> "BaseInfo":
    from finetune.families import distilled

    for name in registry():
        family = family_class(name)
        facts = family.detect(where)
        if facts is not None:
            told = facts.distilled or distilled.by_name(_names(base, Path(where), family.denoiser_name))
            return facts._replace(dtype=_stored(Path(where), family.denoiser_name), distilled=told)
    if reading.is_file(Path(where)):
        from finetune.families.single_file import open_checkpoint

        open_checkpoint(Path(where))  # says what it is instead
    known = f"families known: {', '.join(registry())}"
    raise BaseError(
        f"{base} is not a base this version trains{_what_it_is(where)}",
        _instead(where) or known,
    )


def _names(base: str, where: Path, denoiser: str) -> list[str]:
    """What a base is called: as it was written, and in its own files. None, where its files say that it is whole."""
    named = [part.strip().partition("@")[0] for part in base.split(PLUS)]
    if reading.is_file(where):
        return named
    from finetune.families import parts

    files = [where / "model_index.json", where / denoiser / "config.json"]
    said = [parts.config(file) for file in files if reading.is_file(file)]
    if any(one.get("is_distilled") is False for one in said):
        return []
    return named + [name for one in said if isinstance(name := one.get("_name_or_path"), str)]


def refuse_unknown(base: str, facts: "BaseInfo") -> None:
    """Raises BaseError where nobody knows what a base predicts: not itself, no recipe, and no forward pass told."""
    if not facts.prediction_known:
        raise BaseError(
            f"{base} does not say whether it predicts epsilon or v, and a forward pass cannot tell ({facts.evidence})",
            'set objective.prediction to "epsilon" or "v" in the recipe: the page the base came from says which; '
            "without a recipe, take it as a diffusers folder, whose scheduler_config.json says so",
        )


def _stored(where: Path, denoiser: str) -> str:
    from finetune.families.identify import UNET
    from finetune.families.parts import weight_files
    from finetune.families.stored import formats

    if reading.is_file(where):
        return formats([where], UNET)
    return formats(weight_files(where / denoiser / "diffusion_pytorch_model.safetensors"))


def load(
    base: str, dtype: "torch.dtype | None" = None, facts: "BaseInfo | None" = None,
    objective: "Objective | None" = None, text_bits: int | None = None, base_bits: int | None = None,
) -> "Family":  # fmt: skip
    """The base, on the CPU; dtype of denoiser and text encoders, float32 unless said; facts as detected; the recipe's
    word on how a flow's times are drawn and on the guidance that the denoiser is told; bits of large text encoders, and
    of the denoiser (4).

    Raises:
        BaseError: as `detect`; or weights are missing, truncated or of the wrong shape; or bits need bitsandbytes.
        InputError: bits that cannot be.
    """
    import torch

    _check_bits(base_bits, text_bits)
    if (base_bits or text_bits) and find_spec("bitsandbytes") is None:
        raise BaseError("weights in 4 or 8 bits need bitsandbytes, which is not installed", "pip install bitsandbytes")
    facts = facts or detect(base)
    family = family_class(facts.family).load(locate(base), facts, dtype or torch.float32, text_bits)
    if base_bits:
        family.parts.quantise(family.denoiser_name, family.blocks)
    if objective is not None:
        density = None if objective.timestep_density == "auto" else objective.timestep_density
        family.process = family.process.with_timestep_sampling(
            density, objective.logit_mean, objective.logit_std, objective.shift
        )
        family.guidance = 1.0 if objective.guidance is None else objective.guidance
    return family


def _check_bits(base_bits: int | None, text_encoder_bits: int | None) -> None:
    if base_bits not in (None, 4):
        raise InputError(f"`base_bits` {base_bits}: a denoiser is held in 4 bits, or in full", "4, or leave it out")
    if text_encoder_bits not in (None, 4, 8):
        raise InputError(
            f"`text_encoder_bits` {text_encoder_bits}: a text encoder is held in 4 or 8 bits, or in full",
            "4, 8, or leave it out",
        )


def locate(base: str) -> str:
    """A folder or file as it is; a hub id (`org/name`, or `org/name@revision`) is fetched or found in the hub's cache;
    `BASE + FILE` is the base with the denoiser's weights from a file.

    Raises:
        BaseError: no such folder, file or hub model.
    """
    written = shipped.base_path(base)
    if reading.exists(Path(written)):
        return written
    folder, plus, file = written.partition(PLUS)
    if plus:
        return _composed(locate(folder.strip()), file.strip())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", written) or written.startswith(("./", "../")):
        raise BaseError(f"no base {base}", "give `pocket`, a diffusers folder, a .safetensors checkpoint or a hub id")
    return fetch_from_hub(written, _PIPELINE_FILES)


@functools.cache
def _composed(folder: str, file: str) -> str:
    """A folder of links: to the base's parts, and to the file in place of the denoiser's weights."""
    if not reading.is_file(Path(file)):
        raise BaseError(f"no file {file}", "BASE + FILE: a .safetensors file of the denoiser's weights")
    made = Path(tempfile.mkdtemp(prefix="finetune-base-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    for entry in Path(folder).iterdir():
        if entry.name not in ("unet", "transformer"):
            (made / entry.name).symlink_to(entry.resolve())
            continue
        (made / entry.name).mkdir()
        (made / entry.name / "config.json").symlink_to((entry / "config.json").resolve())
        (made / entry.name / "denoiser.safetensors").symlink_to(Path(file).resolve())
    return str(made)


class TokenCounter(NamedTuple):
    """Counts a caption's tokens the way the base's text encoder sees them."""

    tokenizer: object
    limit: int
    overhead: int
    """tokens of the limit that are not the caption's: start and end, or a whole form around it"""

    def same(self, one: str, other: str) -> bool:
        """Whether two words are the same tokens, as `TOK` and `tok` are where case is folded."""
        encode = self.tokenizer
        first, second = (encode(word, add_special_tokens=False)["input_ids"] for word in (one, other))  # type: ignore[operator]
        return bool(first == second)

    def lost(self, caption: str) -> tuple[int, str]:
        """(tokens with all around them, the text that does not fit: "" when all does)."""
        encode = self.tokenizer  # a transformers tokenizer; typed loosely, as its package is untyped
        ids: list[int] = encode(caption, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        fitting = self.limit - self.overhead
        return len(ids) + self.overhead, str(encode.decode(ids[fitting:])).strip()  # type: ignore[attr-defined]


def tokenizer(base: str) -> TokenCounter:
    """The base's own tokenizer, without its models."""
    facts = detect(base)
    family = family_class(facts.family)
    found = family.tokenizer(locate(base))
    return TokenCounter(found, facts.max_tokens, family.overhead(found))


def token_counters(base: str) -> dict[str, TokenCounter]:
    """The tokenizer of each text encoder of the base, with the limit of each. A family of another package has one."""
    from finetune.families.folder import DiffusersFolder

    facts, where = detect(base), locate(base)
    family = family_class(facts.family)
    last = family.encoders[-1]
    found = {last: tokenizer(base)}
    if issubclass(family, DiffusersFolder):
        source = family.source(where)
        for encoder, one in family.TOKENIZERS.items():
            if encoder != last:
                words = source.tokenizer(one)
                limit = min(facts.max_tokens, int(words.model_max_length))
                found[encoder] = TokenCounter(words, limit, family.overhead(words))
    return {encoder: found[encoder] for encoder in family.encoders if encoder in found}


def lost_tokens(base: str, facts: "BaseInfo", captions: Sequence[str]) -> list[tuple[int, str]]:
    """`TokenCounter.lost` of each; kept, so that no tokenizer is loaded for captions that were counted before."""

    def count() -> list[tuple[int, str]]:
        counter = tokenizer(base)
        return [counter.lost(caption) for caption in captions]

    vocabulary = _vocabulary(locate(base), facts)
    if vocabulary is None:
        return count()
    of = [vocabulary, facts.family, facts.variant, facts.max_tokens, list(captions)]
    return [(tokens, lost) for tokens, lost in known("lost tokens", of, ["transformers", "tokenizers"], count)]


def _vocabulary(where: str, facts: "BaseInfo") -> dict[str, str] | None:
    """File -> digest, of what the base's tokenizer is loaded from; None: a family of another package knows."""
    from finetune.families.folder import DiffusersFolder
    from finetune.tensors import file_sha256

    family = family_class(facts.family)
    if facts.family not in FAMILIES or not issubclass(family, DiffusersFolder):
        return None
    folder = Path(where) / family.TOKENIZERS[family.encoders[-1]].folder
    files = [file for file in files_in(folder) if reading.is_file(file)]
    return {file.name: file_sha256(file) for file in files}


_PIPELINE_FILES = (
    "*.json", "*/*.json", "*/*.jinja", "*/*.txt", "*/*.model", "*/model*.safetensors",
    "*/diffusion_pytorch_model*.safetensors",
)  # fmt: skip


def fetch_from_hub(written: str, wanted: Sequence[str]) -> str:
    """The folder with the wanted files (patterns) of a hub's model, `org/name` or `org/name@revision`.

    Raises:
        BaseError: it is not there, or the hub cannot be reached and its cache has none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = written.partition("@")
    others = ["*.fp16*", "*.fp32*", "*.bf16*", "*non_ema*"]
    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=[*wanted], ignore_patterns=others))
    except LocalEntryNotFoundError as e:
        raise BaseError(
            f"no folder {name} here, and the hub cannot be reached", "check the path, or fetch the model once online"
        ) from e
    except HfHubHTTPError as e:
        code = e.response.status_code if e.response is not None else 0
        if code in (401, 403):
            raise BaseError(
                f"the hub does not give {name} (HTTP {code}): it is gated, private or not there",
                f"accept its licence at huggingface.co/{name}, then `hf auth login`",
            ) from e
        raise BaseError(f"the hub does not give {written} (HTTP {code})", "check the spelling and the revision") from e
    except OSError as e:
        raise BaseError(
            f"{name} cannot be kept in the hub's cache: {e.strerror or e}",
            "free some space there, or name another folder in the variable HF_HOME",
        ) from e


def _instead(where: str) -> str:
    """What to train on instead of a base that is given a picture beside the prompt; empty: who knows."""
    from finetune.families.declared import more_than_prompts
    from finetune.families.identify import SAME_LINE
    from finetune.families.parts import pipeline_name

    return SAME_LINE if more_than_prompts(pipeline_name(Path(where))) else ""


def _what_it_is(where: str) -> str:
    index = Path(where) / "model_index.json"
    if reading.is_file(index):
        from finetune.families.parts import pipeline_name

        return f": it holds a {pipeline_name(Path(where)) or 'unknown pipeline'}"
    return ": no model_index.json in it" if reading.is_dir(Path(where)) else ""
