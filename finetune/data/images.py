"""Image files to arrays: decode, orient, flatten to RGB, crop to a bucket; bucket planning in integers.

Shape legend: H, W pixels; arrays are (3, H, W) float32 in [-1, 1]; sizes are (width, height) in pixels.
"""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from finetune.errors import DataError

_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    GifImagePlugin.GifImageFile,
    AvifImagePlugin.AvifImageFile,
    PpmImagePlugin.PpmImageFile,
)
"""Importing them registers them, which Image.open does not do for a list of formats."""
FORMATS = tuple(plugin.format for plugin in _PLUGINS)
"""What is decoded, with MPO as a sort of JPEG. A closed list: Pillow would hand EPS to Ghostscript."""
KEPT = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats that every reader of a prepared dataset decodes alike."""
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""The usual extensions of each format, the best first."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit for an image bomb; the largest camera sensors have 151 million."""
MAX_FILE_BYTES = 512 * 2**20
WHITE = (255, 255, 255)

Array = npt.NDArray[np.float32]
Colour = tuple[int, int, int]
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
    "unreadable",
]

_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    MemoryError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
"""All that Pillow's decoders are known to raise on malformed files."""


class Size(NamedTuple):
    width: int
    height: int


class Bucket(NamedTuple):
    """A size that images are trained at, in pixels; both sides are multiples of the stride."""

    width: int
    height: int


class SizeConditioning(NamedTuple):
    """How a picture was cut, in px, in the order in which SDXL is told (arXiv:2307.01952, section 2.2)."""

    original_height: float
    original_width: float
    crop_top: float
    """of the enlarged or reduced picture, as are"""
    crop_left: float
    """of the mirrored one, when it is mirrored"""
    target_height: float
    target_width: float


class Facts(NamedTuple):
    """What an image file is, before anything is done to it."""

    format: str
    mode: str
    size: Size
    """after orientation"""
    orientation: int
    """EXIF 1 to 8; 1 is upright"""
    alpha: bool
    """some pixel is not opaque; False when only the header was read"""
    bits: int
    """per channel"""
    profile: bool
    """an embedded colour profile other than sRGB"""


class Unusable(DataError):
    """A file that cannot be trained on, with a reason that scripts can rely on."""

    def __init__(self, path: Path, reason: Reason, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}", "replace or remove the file")
        self.reason, self.detail = reason, detail


# --- decoding -------------------------------------------------------------------------------------------------------


def open_rgb(path: Path, background: Colour = WHITE) -> Image.Image:
    """The picture as people see it, RGB of 8 bits: upright, in sRGB, transparency laid over the background.

    Raises:
        Unusable: the file is no still image that can be decoded in full.
    """
    with _decoding(path, data := contents(path)):
        image = _opened(path, data)
        image.load()
        colour, alpha = _colours(path, _upright(image, _orientation(image)))
        if alpha is None:
            return colour
        return Image.composite(colour, Image.new("RGB", colour.size, background), alpha)


def inspect(path: Path, decode: bool = True) -> Facts:
    """What the file is; with `decode` every pixel was read, so a file cut short is found.

    Raises:
        Unusable: the file is no still image that can be decoded.
    """
    return inspect_bytes(path, contents(path), decode)


def inspect_bytes(path: Path, data: bytes, decode: bool = True) -> Facts:
    """`inspect` for a file whose bytes were read already; the path is for messages."""
    with _decoding(path, data):
        image = _opened(path, data)
        orientation, mode, form = _orientation(image), image.mode, str(image.format)
        width, height = image.size
        tiff_turned = form == "TIFF"  # Pillow reports such a file's size after orientation
        size = Size(height, width) if orientation >= 5 and not tiff_turned else Size(width, height)
        alpha = False
        if decode:
            image.load()
            if form == "PNG":  # decoding passes over a wrong check sum, and the pixels after it are noise
                Image.open(io.BytesIO(data), formats=("PNG",)).verify()
            _refuse_deep(path, image)
            alpha = image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255
        return Facts(form, mode, size, orientation, alpha, _bits(image, data), _wide_profile(image))


def notes(facts: Facts, suffix: str, background: Colour = WHITE) -> list[str]:
    """What is done to such a file before training, one phrase each; nothing for a plain RGB photograph."""
    found = []
    if suffix.lower() not in SUFFIXES[facts.format]:
        found.append(f"is a {facts.format} whatever its name says")
    if facts.orientation != 1:
        found.append("EXIF rotation applied")
    if facts.alpha:
        found.append(f"alpha composited on {colour_name(background)}")
    elif facts.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        found.append("opaque alpha channel dropped")
    if facts.mode == "CMYK":
        found.append("CMYK converted")
    if facts.bits > 8:
        found.append(f"{facts.bits} bits a channel reduced to 8")
    if facts.mode in ("P", "PA"):
        found.append("palette converted")
    if facts.mode in ("1", "L", "LA", "La", "I") or facts.mode.startswith("I;16"):
        found.append("grey converted")
    if facts.profile:
        found.append("colour profile converted to sRGB")
    return found


def plain(facts: Facts) -> bool:
    """Whether every reader sees in the file's own bytes what `open_rgb` returns."""
    upright_rgb = facts.mode == "RGB" and facts.orientation == 1 and facts.bits == 8
    return facts.format in KEPT and upright_rgb and not facts.alpha and not facts.profile


def colour_name(colour: Colour) -> str:
    """`#rrggbb`, or the name of black and white."""
    written = "#{:02x}{:02x}{:02x}".format(*colour)
    return {"#ffffff": "white", "#000000": "black"}.get(written, written)


@contextmanager
def _decoding(path: Path, data: bytes) -> Iterator[None]:
    """Turns whatever a decoder raises into `Unusable`, and keeps its warnings to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError as e:
            raise Unusable(path, "image bomb", f"more than {MAX_PIXELS:,} pixels") from e
        except UnidentifiedImageError as e:
            raise Unusable(path, *_diagnosis(data, path.suffix)) from e
        except _DECODER_ERRORS as e:
            message = str(e).rstrip(".") or type(e).__name__
            reason: Reason = "truncated" if _cut_short(data, message) else "corrupt"
            raise Unusable(path, reason, f"the picture cannot be decoded ({message})") from e


def contents(path: Path) -> bytes:
    """The bytes of a file of bearable size.

    Raises:
        Unusable: empty, unreadable or too large.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Unusable(path, "image bomb", f"a file of more than {MAX_FILE_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as e:
        raise Unusable(path, "unreadable", e.strerror or str(e)) from e
    if not data:
        raise Unusable(path, "zero bytes", "the file is empty; copy it again")
    return data


def _opened(path: Path, data: bytes) -> Image.Image:
    """The image with only its header read, known to be a still one of bearable size."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(path, "image bomb", f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and image.format != "MPO":  # a camera's MPO holds the photo, then its preview or other eye
        raise Unusable(path, "animated", f"it has {frames} frames or pages; save the one you want as PNG")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(0x0112, 1)
    except _DECODER_ERRORS:  # a damaged EXIF block does not make the pixels wrong
        return 1
    return found if found in range(1, 9) else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _colours(path: Path, image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Any mode -> (RGB, alpha as L or None); an opaque alpha is None."""
    _refuse_deep(path, image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image).convert("RGB"), None
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        return _to_srgb(rgba.convert("RGB"), profile), None if alpha.getextrema()[0] == 255 else alpha
    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    return _to_srgb(image, profile), None


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits -> L. Pillow's own convert clips at 255, which turns nearly all of it white."""
    values = np.asarray(image, dtype=np.int64)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """RGB, CMYK or L -> RGB in sRGB. A profile that is broken or of another colour space is ignored, as viewers do."""
    if isinstance(profile, bytes) and profile and not (image.mode == "RGB" and _like_srgb(profile)):
        converted = _profiled(image, profile)
        if converted is not None:
            return converted
    return image.convert("RGB")


def _profiled(image: Image.Image, profile: bytes) -> Image.Image | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _like_srgb(profile: bytes) -> bool:
    """Whether RGB colours move by at most 3 of 255: the many spellings of sRGB do, Display P3 and Adobe RGB do not."""
    ramp = np.linspace(0, 255, 6).astype(np.uint8)
    cube = np.stack(np.meshgrid(ramp, ramp, ramp), axis=-1).reshape(6, 36, 3)
    converted = _profiled(Image.fromarray(cube), profile)
    return converted is None or int(np.abs(np.asarray(converted, np.int16) - cube).max()) <= 3


def _wide_profile(image: Image.Image) -> bool:
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return False
    if image.mode in ("CMYK", "L"):
        return _profiled(Image.new(image.mode, (1, 1)), profile) is not None
    return not _like_srgb(profile)


def _bits(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return max(8, data[24])  # Pillow reads a 16-bit RGB file as RGB, so only the header tells
    tag = getattr(image, "tag_v2", {}).get(258, (8,))
    deepest = max(tag) if isinstance(tag, tuple) else int(tag)
    return 16 if image.mode == "I" or image.mode.startswith("I;16") else max(8, deepest)


def _refuse_deep(path: Path, image: Image.Image) -> None:
    deep = image.mode == "I" and not 0 <= np.asarray(image).min() <= np.asarray(image).max() <= 65535
    if deep or image.mode == "F":
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise Unusable(path, "unsupported type", f"{kind} pixels; save it as PNG or JPEG")


# --- what a file that is no image is --------------------------------------------------------------------------------

_IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_FOREIGN_MAGIC = (
    (b"%PDF", "a PDF document; export its pages as PNG"),
    (b"8BPS", "a Photoshop document; export it as PNG"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x1aE\xdf\xa3", "a video; save single frames as PNG"),
    (b"\0\0\0\x0cJXL", "a JPEG XL file; export it as PNG"),
    (b"\xff\x0a", "a JPEG XL file; export it as PNG"),
    (b"\0\0\0\x0cjP", "a JPEG 2000 file; export it as PNG"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _diagnosis(data: bytes, suffix: str) -> tuple[Reason, str]:
    """Why Pillow does not know these bytes, from how they begin."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "not an image", "it is a web page: the download failed; fetch it again"
    if b"<svg" in head:
        return "unsupported type", "an SVG drawing; export it as PNG"
    if data[4:8] == b"ftyp":
        return "unsupported type", _ftyp(data[8:12])
    if data[:4] == b"RIFF":
        webp = data[8:12] == b"WEBP"
        return ("truncated", "it ends inside its header") if webp else ("unsupported type", "a video or sound file")
    for magic, what in _FOREIGN_MAGIC:
        if data.startswith(magic):
            return "unsupported type", what
    if data.startswith(_IMAGE_MAGIC):
        return "truncated", "it ends inside its header, or its header is damaged"
    if suffix.lower() in {s for known in SUFFIXES.values() for s in known}:
        return "not an image", f"its name ends in {suffix}, but its content is no image"
    return "unsupported type", f"{suffix or 'no extension'}: not an image that can be read"


def _ftyp(brand: bytes) -> str:
    if brand in _HEIF_BRANDS:
        return "a HEIC photo; export it as JPEG or PNG (on an iPhone: Settings, Camera, Formats, Most Compatible)"
    if brand in (b"avif", b"avis"):
        return "an AVIF file that cannot be read here; export it as PNG"
    return "a video; save single frames as PNG"


def _cut_short(data: bytes, message: str) -> bool:
    if re.search(r"truncated|eof|end of (file|data)", message, re.IGNORECASE):
        return True
    return data[:4] == b"RIFF" and len(data) >= 8 and int.from_bytes(data[4:8], "little") + 8 > len(data)


# --- buckets --------------------------------------------------------------------------------------------------------


def plan_buckets(area_px: int, stride: int, max_aspect: float) -> list[Bucket]:
    """Candidate sizes from tallest to widest: the square, and every shape that no other contains.

    Each has at most `area_px` pixels, sides that are multiples of `stride`, and longest / shortest <= `max_aspect`.

    Raises:
        DataError: not even one stride by one stride fits.
    """
    side = math.isqrt(area_px) // stride
    if side == 0:
        raise DataError(
            f"resolution {math.isqrt(area_px)} px is less than {stride} px, the step of this base",
            "raise data.resolution",
        )
    cells = area_px // (stride * stride)
    shapes = [(w, cells // w) for w in range(1, math.isqrt(int(cells * max_aspect)) + 1)]
    shapes = [(w, h) for w, h in shapes if max(w, h) <= max_aspect * min(w, h)]
    mirrored = sorted({*shapes, *((h, w) for w, h in shapes)})
    largest = [a for a in mirrored if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in mirrored)]
    return [Bucket(w * stride, h * stride) for w, h in sorted({*largest, (side, side)}, key=lambda s: (s[0] / s[1], s))]


def usual_stride(resolution: int) -> int:
    """The stride in px for previews where no base is named: 64 as for Stable Diffusion, less for tiny resolutions."""
    return min(64, max(8, resolution // 4 // 8 * 8))


def choose_bucket(size: Size, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket that loses the least of the image; of equals the largest, then the widest."""
    return min(buckets, key=lambda b: (crop_loss(size, b), -b.width * b.height, -b.width))


def crop_loss(size: Size, bucket: Bucket) -> float:
    """The share of the image's area, in [0, 1), that covering the bucket and cropping throws away."""
    ours, theirs = size.width * bucket.height, bucket.width * size.height
    return 1 - min(ours, theirs) / max(ours, theirs)


def enlargement(size: Size, bucket: Bucket) -> float:
    """How many times the image is magnified to cover the bucket; above 1 it is upscaled."""
    return max(bucket.width / size.width, bucket.height / size.height)


def fit(image: Image.Image, bucket: Bucket, place: float = 0.5, flip: bool = False) -> Image.Image:
    """The image scaled to cover the bucket, never distorted, cut to it, then mirrored.

    `place` in [0, 1] is where along the one cropped axis the window lies: 0 touches left or top, 1 right or bottom.
    """
    width, height = float(image.width), float(image.height)
    if image.width * bucket.height > bucket.width * image.height:
        width = image.height * bucket.width / bucket.height
    else:
        height = image.width * bucket.height / bucket.width
    left, top = (image.width - width) * place, (image.height - height) * place
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    scaled = image.resize(bucket, Image.Resampling.LANCZOS, box=box)  # one step, so no side is rounded before the cut
    return scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else scaled


def size_conditioning(size: Size, bucket: Bucket, place: float = 0.5, flip: bool = False) -> SizeConditioning:
    """What `fit` does to an image of that size."""
    scale = enlargement(size, bucket)
    left, top = ((edge * scale - kept) * place for edge, kept in zip(size, bucket, strict=True))
    if flip:
        left = size.width * scale - bucket.width - left
    return SizeConditioning(size.height, size.width, top, left, bucket.height, bucket.width)


def to_array(image: Image.Image) -> Array:
    """RGB image -> (3, H, W) float32 in [-1, 1]: 0 -> -1, 255 -> 1."""
    pixels = np.asarray(image, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
