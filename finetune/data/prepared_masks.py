"""Masks of a prepared dataset: grey PNGs of 8 bits under `masks/`, upright as their images are."""

import hashlib
import io
import posixpath
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from finetune.data.audit import Audit
from finetune.data.example import MaskFile
from finetune.data.images import decode
from finetune.data.images.buckets import Size
from finetune.data.images.decode import ImageInfo
from finetune.data.masks import fault_of, open_mask
from finetune.data.record import Seen
from finetune.data.text.caption_files import first_three
from finetune.errors import DataError

MASKS_FOLDER = "masks"
MAKER = "Software"
"""the PNG text that says who made a mask, where a person did not"""


class WrittenMask(NamedTuple):
    path: Path
    name: str
    """The posix path relative to the dataset's root."""
    seen: Seen


def with_alpha(report: Audit) -> Audit:
    """The audit with each transparent image as its own mask, of which its transparency is taken.

    Raises:
        DataError: no image is transparent, or one that is has another mask as well.
    """
    clear = [e for e in report.used if report.pictures[e.name].info.alpha]
    if not clear:
        raise DataError("`mask_from` is alpha, but no image is transparent", "leave `mask_from` out")
    if double := [f"{e.name} and {e.mask.path.name}" for e in clear if e.mask]:
        raise DataError(
            f"two masks for {'one image' if len(double) == 1 else f'{len(double)} images'}, its transparency and a "
            f"file: {first_three(double)}",
            "remove the file where the transparency is meant, or leave `mask_from` out",
        )
    own = {e.name: MaskFile(e.path, e.digest, e.size, alpha=True) for e in clear}
    return replace(report, used=tuple(e._replace(mask=own.get(e.name, e.mask)) for e in report.used))


def write_mask(mask: MaskFile, root: Path, image: str, taken: set[str]) -> WrittenMask:
    """Written into the new dataset beside its image, given by its name there. taken: names of masks so far.

    Raises:
        DataError: an image is wholly transparent.
    """
    name = mask_name(image, taken)
    grey = _pixels(mask)
    content = mask_png(grey)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    info = ImageInfo("PNG", "L", Size(grey.width, grey.height), 1, False, 8, False)
    return WrittenMask(path, name, Seen(hashlib.sha256(content).hexdigest(), info, "", False))


def mask_name(image: str, taken: set[str]) -> str:
    """Where the mask of a prepared image is written. taken: names of masks so far, in lower case."""
    stem = posixpath.splitext(image.removeprefix("images/"))[0]
    name, count = f"{MASKS_FOLDER}/{stem}.png", 1
    while name.casefold() in taken:
        count += 1
        name = f"{MASKS_FOLDER}/{stem}-{count}.png"
    taken.add(name.casefold())
    return name


def _pixels(mask: MaskFile) -> Image.Image:
    if not mask.alpha:
        return open_mask(mask)
    grey = decode.alpha(mask.path, decode.contents(mask.path, mask.digest))
    if fault_of(grey) == "empty":
        raise DataError(f"{mask.path.name} is wholly transparent: its mask would be empty", "remove it")
    return grey


def mask_png(grey: Image.Image, maker: str = "") -> bytes:
    """A picture in mode L as PNG, lossless. maker: the program that made it, where no person did."""
    told = PngInfo()
    if maker:
        told.add_text(MAKER, maker)
    file = io.BytesIO()
    plain = Image.frombytes("L", grey.size, grey.tobytes())
    plain.save(file, "PNG", pnginfo=told)
    return file.getvalue()
