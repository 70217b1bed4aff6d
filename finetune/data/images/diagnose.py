"""Why a file cannot be trained on: the reasons, and what a file that is no image is, from its first bytes."""

import re
from pathlib import Path
from typing import Literal

from finetune.data.images.signatures import AVIF_BRANDS, HEIF_BRANDS, IMAGE_SUFFIXES, JPEG_XL_MAGIC, format_of
from finetune.errors import DataError

Reason = Literal[
    "zero bytes",
    "truncated",
    "corrupt",
    "not an image",
    "unsupported type",
    "animated",
    "too small",
    "extreme aspect",
    "exact duplicate",
    "image bomb",
    "link",
    "caption without image",
    "licence",
    "licence without image",
    "mask without picture",
    "control picture",
    "unreadable",
    "changed",
    "near duplicate",
    "leak",
]


class Unusable(DataError):
    """A file that cannot be trained on, with a reason that scripts can rely on."""

    def __init__(self, path: Path, reason: Reason, detail: str, hint: str = "replace or remove the file") -> None:
        super().__init__(f"{path}: {reason}: {detail}", hint)
        self.reason, self.detail = reason, detail


_FOREIGN_MAGIC = (
    (b"%PDF", "a PDF document; export its pages as PNG"),
    (b"8BPS", "a Photoshop document; export it as PNG"),
    (b"PK\x03\x04", "a zip archive; prepare it as a source of its own"),
    (b"\x1f\x8b", "a gzip archive; unpack it, or prepare a .tar.gz as a source of its own"),
    (b"\x1aE\xdf\xa3", "a video; save single frames as PNG"),
    *((magic, "a JPEG XL file; export it as PNG") for magic in JPEG_XL_MAGIC),
    (b"\0\0\0\x0cjP", "a JPEG 2000 file; export it as PNG"),
)


def diagnose(data: bytes, suffix: str, plugin: bool = False) -> tuple[Reason, str]:
    """Why Pillow does not know these bytes, from how they begin. plugin: what reads such files is installed."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "not an image", "it is a web page: the download failed; fetch it again"
    if b"<svg" in head:
        return "unsupported type", "an SVG drawing; export it as PNG"
    if data[4:8] == b"ftyp":
        return "unsupported type", _ftyp(data[8:12], plugin)
    if data[:4] == b"RIFF":
        webp = data[8:12] == b"WEBP"
        return ("truncated", "it ends inside its header") if webp else ("unsupported type", "a video or sound file")
    for magic, what in _FOREIGN_MAGIC:
        if data.startswith(magic):
            return "unsupported type", what
    if format_of(data):
        return "truncated", "it ends inside its header, or its header is damaged"
    if suffix.lower() in IMAGE_SUFFIXES:
        return "not an image", f"its name ends in {suffix}, but its content is not an image"
    return "unsupported type", f"{suffix or 'no extension'}: not a supported image format"


def _ftyp(brand: bytes, plugin: bool) -> str:
    if brand in HEIF_BRANDS and plugin:
        return "a HEIC file that is damaged or of an unsupported kind; export it as JPEG or PNG"
    if brand in HEIF_BRANDS:
        return "a HEIC photo; install `finetune-diffusion[heic]` to read it, or export it as JPEG or PNG"
    if brand in AVIF_BRANDS:
        return "an AVIF file that cannot be decoded on this machine; export it as PNG"
    return "a video; save single frames as PNG"


def is_cut_short(data: bytes, message: str) -> bool:
    if re.search(r"truncated|eof|end of (file|data)", message, re.IGNORECASE):
        return True
    return data[:4] == b"RIFF" and len(data) >= 8 and int.from_bytes(data[4:8], "little") + 8 > len(data)
