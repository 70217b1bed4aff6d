"""Pictures to a folder, with a sheet of all of them. Imports torch."""

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from finetune import families
from finetune import resources as shipped
from finetune import tensors as weights
from finetune.encoding import cache
from finetune.errors import BaseError, InputError, RunError
from finetune.families.base import Facts, Family, large_encoders
from finetune.files import layouts
from finetune.machine import DTYPES
from finetune.planning.resolve import precision as resolve_precision
from finetune.sampling import sampler
from finetune.sampling.sampler import Shot, Worn


class Order(NamedTuple):
    """What `sample` was asked for."""

    base: str
    prompt: tuple[str, ...]
    prompts: Path | None
    adapters: tuple[str, ...]
    negative: str
    seed: int
    steps: int
    guidance: float | None
    scheduler: str
    size: str
    pictures: int
    merged: bool
    safety: bool
    out: Path
    precision: str
    base_bits: int | None
    text_encoder_bits: int | None


def sample(order: Order) -> None:
    console = Console()
    wanted, worn = _prompts(order), [_worn(text) for text in order.adapters]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(order.precision, "--precision")
    family = _opened(order, DTYPES[precision])
    width, height = _size(order.size, family.facts)
    guidance = family.facts.guidance if order.guidance is None else order.guidance
    captions = cache.read_ahead(family, [*wanted, order.negative], device)
    if order.merged and precision != "fp32":
        family = _opened(order, torch.float32)
        captions = cache.Captions(family, captions.known, device)
    pipeline = family.pipeline(order.scheduler, order.safety)
    sampler.wear(family, pipeline, worn, order.merged)
    if order.merged and precision != "fp32":
        for name in family.parts.loaded().keys() - {"vae"}:
            family.parts[name].to(DTYPES[precision])
    family.parts.to(device)
    if checker := getattr(pipeline, "safety_checker", None):
        checker.to(device)
    facts = {
        "base": shipped.public_name(order.base), "scheduler": type(pipeline.scheduler).__name__,
        "adapters": ", ".join(f"{w.path.name}:{w.weight:g} sha256 {_sha256(w.path)[:12]}" for w in worn),
        "merged": "yes" if order.merged and worn else "",
        "precision": f"{precision}, base in 4 bits" if order.base_bits else precision,
        "safety checker": _safety(order.safety, family.has_safety_checker()),
    }  # fmt: skip
    rows = []
    for i in track(range(order.pictures), "making pictures", console=console, disable=not console.is_terminal):
        row = []
        for n, prompt in enumerate(wanted):
            shot = Shot(prompt, order.seed + i, order.negative, order.steps, guidance, width, height)
            made = sampler.render(family, pipeline, shot, device, nullcontext, lambda said: captions.read([said]))
            if made.blocked:
                console.print(f"[yellow]the base's safety checker blanked {n:02d}-{shot.seed}.png[/]")
            path = order.out / f"{n:02d}-{shot.seed}.png"
            _write(made.image, path, {**shot.described(), **facts, "blanked": "yes" if made.blocked else ""})
            row.append(made.image)
        rows.append((f"seed {order.seed + i}", row))
    sheet = order.out / "sheet.png"
    _write(sampler.sheet(rows, wanted), sheet, {"prompt": " | ".join(wanted), **facts})
    console.print(
        f"{len(wanted) * order.pictures} pictures in {order.out}; all of them: {sheet}", highlight=False, soft_wrap=True
    )


def _opened(order: Order, dtype: torch.dtype) -> Family:
    """Raises InputError for what this base or this machine has not."""
    facts = families.detect(order.base)
    kind = families.family_class(facts.family)
    if order.scheduler and order.scheduler not in kind.schedulers:
        raise InputError(f"no scheduler {order.scheduler!r} for {order.base}", f"one of {', '.join(kind.schedulers)}")
    if order.text_encoder_bits and not large_encoders(kind):
        raise InputError(f"--text-encoder-bits: {order.base} has no large text encoder", "leave it out")
    if order.text_encoder_bits not in (None, 4, 8):
        raise InputError(f"--text-encoder-bits {order.text_encoder_bits}: a text encoder has 8 or 4", "8, or 4")
    if order.base_bits not in (None, 4):
        raise InputError(f"--base-bits {order.base_bits}: the denoiser has 4, or all of --precision", "4")
    if order.base_bits and order.merged:
        raise InputError("--merged: weights of 4 bits cannot take a change in", "leave out --merged or --base-bits")
    return families.load(order.base, dtype, facts, text_bits=order.text_encoder_bits, base_bits=order.base_bits)


def _prompts(order: Order) -> list[str]:
    wanted = list(order.prompt)
    if order.prompts:
        try:
            wanted += [
                line.strip() for line in order.prompts.read_text(encoding="utf-8-sig").splitlines() if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"cannot read {order.prompts}: {e}", "a UTF-8 text file, one prompt a line") from e
    if not wanted:
        raise InputError("no prompt", '--prompt "a red apple", or --prompts FILE')
    return wanted


def _worn(text: str) -> Worn:
    path, colon, weight = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            return Worn(Path(path), float(weight))
        except ValueError:
            pass
    if not Path(text).exists():
        raise BaseError(f"no adapter file {text}", "FILE, or FILE:weight")
    return Worn(Path(text), 1.0)


def _size(text: str, facts: Facts) -> tuple[int, int]:
    if not text:
        return facts.resolution, facts.resolution
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as e:
        raise InputError(f"--size {text} is not a size", "write it as WIDTHxHEIGHT, such as 512x768") from e
    if min(width, height) < facts.stride or width % 8 or height % 8:
        raise InputError(f"--size {text} is no size of this base", f"multiples of 8 px, at least {facts.stride}")
    return width, height


def _safety(wanted: bool, has: bool) -> str:
    if not has:
        return "the base has none"
    return "on" if wanted else "switched off"


def _sha256(path: Path) -> str:
    """Of the file; of a folder, over its weight files."""
    if path.is_file():
        return weights.file_sha256(path)
    files = sorted(layouts.adapter_in(path).rglob("*.safetensors"))
    return weights.digest("".join(map(weights.file_sha256, files)))


def _write(image: Image, path: Path, facts: dict[str, str]) -> None:
    try:
        sampler.write_png(image, path, facts)
    except OSError as e:
        raise RunError(f"cannot write {path}: {e.strerror}", "another --out") from e
