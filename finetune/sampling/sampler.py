"""Prompts to pictures, by diffusers' own pipelines; labelled sheets; pictures that carry their recipe."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from finetune.adapters.change import sites
from finetune.errors import VerifyError
from finetune.families.base import Family, Text, components, evaluation_mode, read
from finetune.files import layouts
from finetune.machine import Autocast

SHOWN_PX = 192
"""least side of a picture in a sheet; smaller ones are enlarged"""
_MARGIN, _LABEL = 8, 18


class Shot(NamedTuple):
    """One picture to make; the seed decides its noise, on every device alike."""

    prompt: str
    seed: int
    negative: str = ""
    steps: int = 20
    guidance: float = 7.5
    width: int = 512
    height: int = 512

    def described(self) -> dict[str, str]:
        return {k: str(v) for k, v in self._asdict().items()}


class Worn(NamedTuple):
    """An adapter file, and how strongly it is applied."""

    path: Path
    weight: float


class Picture(NamedTuple):
    image: Image.Image
    blocked: bool
    """by the base's safety checker"""


Read = Callable[[str], Text]
"""a prompt -> what the denoiser reads of it, on the device"""


def wear(family: Family, pipeline: Any, adapters: Sequence[Worn], merged: bool) -> None:
    """Apply adapter files, read by our own strict reader, to a pipeline; live, or merged into the weights in float32.

    Raises:
        VerifyError: a file cannot be read whole for this base.
    """
    names = [f"adapter_{i}" for i in range(len(adapters))]
    places = sites(components(family))  # before an adapter hides some of them
    for name, worn in zip(names, adapters, strict=True):
        found = layouts.read(worn.path, places, family.name)
        misfits = [n for n, module in found.modules.items() if module.shape != places[n]]
        problems = [*found.problems, *(f"{n}: not of the base's shape" for n in misfits)]
        if problems:
            raise VerifyError(f"{worn.path}: {problems[0]}", f"finetune verify {worn.path} --base {family.base}")
        pipeline.load_lora_weights(layouts.for_pipeline(found.modules, torch.float32, family.name), adapter_name=name)
    if adapters:
        pipeline.set_adapters(names, [worn.weight for worn in adapters])
    if adapters and merged:
        parts = [name for name, part in family.parts.loaded().items() if getattr(part, "peft_config", None)]
        pipeline.fuse_lora(components=parts, adapter_names=names)
        pipeline.unload_lora_weights()


def render(
    family: Family, pipeline: Any, shot: Shot, device: torch.device, autocast: Autocast, texts: Read | None = None
) -> Picture:
    """One picture; prompts are read by the family's own encoders unless told otherwise.

    Leaves modules, their dtypes and torch's random state as they were.
    """
    texts = texts or (lambda prompt: read(family, [prompt]))
    with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(family), autocast():
        text, negative = (texts(said).each(lambda part: part.to(device)) for said in (shot.prompt, shot.negative))
        asked = family.painting(text, negative, shot.guidance)
        painted = pipeline(
            **asked, num_inference_steps=shot.steps, width=shot.width, height=shot.height, output_type="latent",
            generator=torch.Generator("cpu").manual_seed(shot.seed),
        ).images  # fmt: skip
    latents = family.unpacked(painted, shot.width, shot.height)
    pixels = family.decode_latents(latents.to(device))  # in float32: half precision overflows some autoencoders
    image = pipeline.image_processor.postprocess(pixels.cpu(), output_type="pil")[0]
    if getattr(pipeline, "safety_checker", None) is None:
        return Picture(image, False)
    inputs = pipeline.feature_extractor([image], return_tensors="pt").pixel_values.to(device)
    array = pipeline.image_processor.postprocess(pixels.cpu(), output_type="np")
    checked, flagged = pipeline.safety_checker(images=array, clip_input=inputs)
    return Picture(pipeline.image_processor.numpy_to_pil(checked)[0], bool(flagged[0]))


def write_png(image: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    """A PNG whose text chunks say how it was made; `parameters` is the line web UIs show."""
    info = PngInfo()
    for key, text in facts.items():
        info.add_itxt(key, text)
    info.add_itxt("parameters", _parameters(facts))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=info)


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str]) -> Image.Image:
    """A labelled grid: one row of pictures per label, the column labels above."""
    side = max(SHOWN_PX, *(max(i.size) for _, images in rows for i in images))
    font = ImageFont.load_default(13)
    names = [_wrap(label, font, side) for label, _ in rows]
    left = max(round(font.getlength(line)) for lines in names for line in lines) + 2 * _MARGIN
    width = left + len(columns) * (side + _MARGIN)
    top = _LABEL * max(len(_wrap(c, font, side)) for c in columns) + 2 * _MARGIN
    page = Image.new("RGB", (width, top + len(rows) * (side + _MARGIN)), "white")
    pen = ImageDraw.Draw(page)
    for c, label in enumerate(columns):
        for n, line in enumerate(_wrap(label, font, side)):
            pen.text((left + c * (side + _MARGIN), _MARGIN + n * _LABEL), line, fill="black", font=font)
    for r, (_, images) in enumerate(rows):
        y = top + r * (side + _MARGIN)
        for n, line in enumerate(names[r]):
            pen.text((_MARGIN, y + side // 2 + n * _LABEL), line, fill="black", font=font)
        for c, image in enumerate(images):
            page.paste(_enlarged(image, side), (left + c * (side + _MARGIN), y))
    return page


def _enlarged(image: Image.Image, side: int) -> Image.Image:
    """Fitted into the middle of a square of that side."""
    scale = side / max(image.size)
    fitted = image.convert("RGB").resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
    )
    page = Image.new("RGB", (side, side), "white")
    page.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return page


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than width; a word that is wider is broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            lines += [""] if font.getlength(lines[-1] + letter) > width else []
            lines[-1] += letter
    return lines


def _parameters(facts: Mapping[str, str]) -> str:
    rest: Iterable[str] = (f"{k}: {v}" for k, v in facts.items() if k not in ("prompt", "negative") and v)
    negative = f"\nNegative prompt: {facts['negative']}" if facts.get("negative") else ""
    return f"{facts.get('prompt', '')}{negative}\n{', '.join(rest)}"
