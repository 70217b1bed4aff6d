"""Image files to RGB: what a file is, its pixels upright, in sRGB and without transparency."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
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

from finetune.data.buckets import Size
from finetune.data.diagnose import SUFFIXES, Reason, Unusable, diagnose, is_cut_short

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
IMAGE_FORMATS = tuple(plugin.format for plugin in _PLUGINS)
"""What is decoded, with MPO as a sort of JPEG. A closed list: Pillow would hand EPS to Ghostscript."""
KEPT = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats that every reader of a prepared dataset decodes alike."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit for an image bomb; the largest camera sensors have 151 million."""
MAX_FILE_BYTES = 512 * 2**20
WHITE = (255, 255, 255)

Colour = tuple[int, int, int]

DECODER_ERRORS = (
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


class ImageInfo(NamedTuple):
    """What an image file is, before anything is done to it."""

    format: str
    mode: str
    size: Size
    """The size of the upright image."""
    orientation: int
    """The EXIF orientation, 1 to 8; 1 is upright."""
    alpha: bool
    """Some pixel is not opaque. It is False when only the header was read."""
    bits: int
    """The bit depth of a channel."""
    profile: bool
    """The file embeds a colour profile other than sRGB."""


def open_rgb(path: Path, background: Colour = WHITE) -> Image.Image:
    """The image as viewers show it, in 8-bit RGB: upright, in sRGB, composited on the background.

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


def read_info(path: Path, decode: bool = True) -> ImageInfo:
    """Reads what the file is; with `decode` it reads every pixel, so it finds a truncated file.

    Raises:
        Unusable: the file is no still image that can be decoded.
    """
    return inspect_bytes(path, contents(path), decode)


def inspect_bytes(path: Path, data: bytes, decode: bool = True) -> ImageInfo:
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
        return ImageInfo(form, mode, size, orientation, alpha, _bits(image, data), _wide_profile(image))


def notes(info: ImageInfo, suffix: str, background: Colour = WHITE) -> list[str]:
    """The conversions of such a file before training, a phrase each; a plain RGB photograph has none."""
    changes = []
    if suffix.lower() not in SUFFIXES[info.format]:
        changes.append(f"is a {info.format} whatever its name says")
    if info.orientation != 1:
        changes.append("EXIF rotation applied")
    if info.alpha:
        changes.append(f"alpha composited on {colour_name(background)}")
    elif info.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        changes.append("opaque alpha channel dropped")
    if info.mode == "CMYK":
        changes.append("CMYK converted")
    if info.bits > 8:
        changes.append(f"{info.bits} bits a channel reduced to 8")
    if info.mode in ("P", "PA"):
        changes.append("palette converted")
    if info.mode in ("1", "L", "LA", "La", "I") or info.mode.startswith("I;16"):
        changes.append("grey converted")
    if info.profile:
        changes.append("colour profile converted to sRGB")
    return changes


def needs_no_change(info: ImageInfo) -> bool:
    """Whether the file can be copied as it is: every reader decodes it to what `open_rgb` returns."""
    upright_rgb = info.mode == "RGB" and info.orientation == 1 and info.bits == 8
    return info.format in KEPT and upright_rgb and not info.alpha and not info.profile


def colour_name(colour: Colour) -> str:
    """`#rrggbb`, or the name of black and white."""
    code = "#{:02x}{:02x}{:02x}".format(*colour)
    return {"#ffffff": "white", "#000000": "black"}.get(code, code)


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
            raise Unusable(path, *diagnose(data, path.suffix)) from e
        except DECODER_ERRORS as e:
            message = str(e).rstrip(".") or type(e).__name__
            reason: Reason = "truncated" if is_cut_short(data, message) else "corrupt"
            raise Unusable(path, reason, f"the picture cannot be decoded ({message})") from e


def contents(path: Path) -> bytes:
    """The bytes of a file that is not too large.

    Raises:
        Unusable: empty, unreadable or too large.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Unusable(path, "image bomb", f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as e:
        raise Unusable(path, "unreadable", e.strerror or str(e)) from e
    if not data:
        raise Unusable(path, "zero bytes", "the file is empty; copy it again")
    return data


def _opened(path: Path, data: bytes) -> Image.Image:
    """The image with only its header read; it is a still image and not too large."""
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(path, "image bomb", f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and image.format != "MPO":  # a camera's MPO holds the photo, then its preview or other eye
        raise Unusable(path, "animated", f"it has {frames} frames or pages; save the frame you want as PNG")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except DECODER_ERRORS:  # a damaged EXIF block does not make the pixels wrong
        return 1
    return orientation if orientation in range(1, 9) else 1


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
        raise Unusable(path, "unsupported type", f"the pixels are {kind}; save it as PNG or JPEG")
