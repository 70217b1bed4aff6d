"""Image files to RGB: what a file is, its pixels upright, in sRGB and without transparency."""

import hashlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from finetune.data.images import colours, costs, plugins
from finetune.data.images.buckets import Size
from finetune.data.images.colours import WHITE, Colour, colour_name
from finetune.data.images.diagnose import Reason, Unusable, diagnose, is_cut_short
from finetune.data.images.looks import measure_looks
from finetune.data.images.signatures import SUFFIXES

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
"""What is decoded, with MPO as a sort of JPEG, beside what `plugins` reads. A closed list: Pillow would hand EPS to
Ghostscript."""
KEPT = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats that every reader of a prepared dataset decodes alike."""
DECODER = f"Pillow {PIL.__version__}{plugins.plugin_versions()}"
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
    long_text: bool = False
    """A PNG with a text that some readers refuse."""
    crop: tuple[int, int, int, int] | None = None
    """What is used of the upright image: left, top, right, bottom in px; `size` is the size then. None: all of it."""


def open_rgb(path: Path, background: Colour = WHITE, digest: str = "") -> Image.Image:
    """The image as viewers show it, in 8-bit RGB: upright, in sRGB, composited on the background.

    digest: the SHA-256 that its bytes must have, where it was looked at before.

    Raises:
        Unusable: the file is no still image that can be decoded in full, or another one than before.
    """
    return decoded(path, contents(path, digest), background)


def decoded(path: Path, data: bytes, background: Colour = WHITE) -> Image.Image:
    """`open_rgb` of bytes that were read already; the path is for messages."""
    with _decoding(path, data):
        image, _ = _opened(path, data)
        with costs.PICTURES.taken(costs.share(image)):
            image.load()
            _refuse_deep(path, image)
            return colours.flattened(upright(image, _orientation(image)), background)


def alpha(path: Path, data: bytes) -> Image.Image:
    """How opaque each pixel of the upright image is, in mode L.

    Raises:
        Unusable: as `decoded`.
    """
    with _decoding(path, data):
        image, info = _opened(path, data)
        with costs.PICTURES.taken(costs.share(image)):
            image.load()
            return upright(image.convert("RGBA").getchannel("A"), info.orientation)


def read_info(path: Path, decode: bool = True) -> ImageInfo:
    """Reads what the file is; with `decode` it reads every pixel, so it finds a truncated file.

    Raises:
        Unusable: the file is no still image that can be decoded.
    """
    return inspect_bytes(path, contents(path), decode)


def inspect_bytes(path: Path, data: bytes, decode: bool = True) -> ImageInfo:
    """`read_info` of bytes that were read already."""
    with _decoding(path, data):
        image, info = _opened(path, data)
        return _loaded(path, image, info, data) if decode else info


def inspect_pixels(path: Path, data: bytes, background: Colour) -> tuple[ImageInfo, str, bytes]:
    """`inspect_bytes`, the digest of the pixels that `decoded` gives, where a prepared dataset holds just these: in a
    PNG (empty for other files, which are copied), and how the picture looks."""
    with _decoding(path, data):
        image, info = _opened(path, data)
        with costs.PICTURES.taken(costs.share(image)):
            info = _loaded(path, image, info, data)
            if needs_no_change(info):
                digest = colours.pixels_digest(image, background) if info.format == "PNG" else ""
                return info, digest, measure_looks(image)
            flat = colours.flattened(upright(image, info.orientation), background)
            return info, colours.pixels_digest(flat, background), measure_looks(flat)


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
    if info.long_text:
        changes.append("text of more than 1 MiB left out")
    return changes


def needs_no_change(info: ImageInfo) -> bool:
    """Whether the file can be copied as it is: every reader decodes it to what `open_rgb` returns."""
    upright_rgb = info.mode == "RGB" and info.orientation == 1 and info.bits == 8
    return info.format in KEPT and upright_rgb and not (info.alpha or info.profile or info.long_text or info.crop)


class _Silence:
    """Warnings of decoders are kept from the user, by any number of threads at once: the filters are the process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


SILENCE = _Silence()


@contextmanager
def _decoding(path: Path, data: bytes) -> Iterator[None]:
    """Turns whatever a decoder raises into `Unusable`, and keeps its warnings to itself."""
    with SILENCE:
        try:
            yield
        except Image.DecompressionBombError as e:
            raise Unusable(path, "image bomb", f"it has more than {costs.MAX_PIXELS:,} pixels") from e
        except UnidentifiedImageError as e:
            raise Unusable(path, *diagnose(data, path.suffix, bool(plugins.formats_for(data)))) from e
        except DECODER_ERRORS as e:
            message = str(e).rstrip(".") or type(e).__name__
            reason: Reason = "truncated" if is_cut_short(data, message) else "corrupt"
            raise Unusable(path, reason, f"the picture cannot be decoded ({message})") from e


def contents(path: Path, digest: str = "") -> bytes:
    """The bytes of a file that is not too large. digest: the SHA-256 that they must have, where it was read before.

    Raises:
        Unusable: empty, unreadable, too large, or changed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(costs.MAX_FILE_BYTES + 1)
    except OSError as e:
        raise Unusable(path, "unreadable", e.strerror or str(e)) from e
    if len(data) > costs.MAX_FILE_BYTES:
        raise Unusable(path, "image bomb", f"the file is larger than {costs.MAX_FILE_BYTES >> 20} MiB")
    if digest and hashlib.sha256(data).hexdigest() != digest:
        hint = "start again, and do not change the pictures while it runs"
        raise Unusable(path, "changed", "the file has changed since it was checked", hint)
    if not data:
        raise Unusable(path, "zero bytes", "the file is empty; copy it again")
    return data


def _opened(path: Path, data: bytes) -> tuple[Image.Image, ImageInfo]:
    """The image with only its header read; it is a still image and not too large."""
    readable = costs.without_long_texts(path, data)
    if more := plugins.formats_for(data):
        costs.refuse_costly_plugin(path, data)
    image = Image.open(io.BytesIO(readable), formats=(*IMAGE_FORMATS, *more))
    costs.refuse_costly(path, image, data)
    orientation, form = _orientation(image), str(image.format)
    width, height = image.size
    tiff_turned = form == "TIFF"  # Pillow reports such a file's size after orientation
    size = Size(height, width) if orientation >= 5 and not tiff_turned else Size(width, height)
    profile = colours.converts_colours(image)
    return image, ImageInfo(
        form, image.mode, size, orientation, False, _bits(image, data), profile, readable is not data
    )


def _loaded(path: Path, image: Image.Image, info: ImageInfo, data: bytes) -> ImageInfo:
    """What every pixel of the image tells, too."""
    image.load()
    if info.format == "PNG":  # decoding passes over a wrong check sum, and the pixels after it are noise
        Image.open(io.BytesIO(costs.without_long_texts(path, data)), formats=("PNG",)).verify()
    _refuse_deep(path, image)
    return info._replace(alpha=colours.has_alpha(image), profile=colours.converts_colours(image))


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


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """As a viewer shows a picture of this EXIF orientation."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _bits(image: Image.Image, data: bytes) -> int:
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if image.format == "PNG":
        return max(8, data[24])  # Pillow reads a 16-bit RGB file as RGB, so only the header tells
    tag = getattr(image, "tag_v2", {}).get(258, (8,))
    deepest = max(tag) if isinstance(tag, tuple) else int(tag)
    return 16 if colours.is_deep_grey(image) else max(8, deepest)


def _refuse_deep(path: Path, image: Image.Image) -> None:
    if image.mode == "F":
        raise Unusable(path, "unsupported type", "the pixels are floating-point; save it as PNG or JPEG")
    if image.mode == "I" and not 0 <= (extremes := _extremes(image))[0] <= extremes[1] <= 65535:
        raise Unusable(path, "unsupported type", "the pixels are 32-bit; save it as PNG or JPEG")


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest pixel of a picture of one channel."""
    least, most = image.getextrema()
    assert not isinstance(least, tuple) and not isinstance(most, tuple)
    return least, most
