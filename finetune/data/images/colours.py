"""A decoded picture as RGB in sRGB: its mode, its colour profile and its transparency, in bands of few rows.

One copy of a picture of 160 million pixels takes 640 MB: what is converted band by band never takes a third one.
"""

import hashlib
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms

BAND_PIXELS = 1 << 22
Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)


def colour_name(colour: Colour) -> str:
    """`#rrggbb`, or the name of black and white."""
    code = "#{:02x}{:02x}{:02x}".format(*colour)
    return {"#ffffff": "white", "#000000": "black"}.get(code, code)


def flattened(image: Image.Image, background: Colour) -> Image.Image:
    """A loaded picture of any 8- or 16-bit mode as RGB in sRGB, composited on the background. It carries nothing else:
    no profile, no EXIF. What is RGB already is returned itself."""
    if _is_plain(image):
        image.info = {}
        return image
    flat = Image.new("RGB", image.size)
    for top, band in _flat_bands(image, background):
        flat.paste(band, (0, top))
    return flat


def pixels_digest(image: Image.Image, background: Colour) -> str:
    """SHA-256 of the size and the pixels of what `flattened` returns, which is not made."""
    found = hashlib.sha256(repr(image.size).encode())
    bands = _bands(image) if _is_plain(image) else _flat_bands(image, background)
    for _, band in bands:
        found.update(band.tobytes())
    return found.hexdigest()


def has_alpha(image: Image.Image) -> bool:
    """Whether some pixel of a loaded picture is not opaque."""
    if not image.has_transparency_data:
        return False
    return any(band.convert("RGBA").getchannel("A").getextrema()[0] != 255 for _, band in _bands(image))


def converts_colours(image: Image.Image) -> bool:
    """Whether the picture embeds a profile other than sRGB, which can be read."""
    profile = _profile(image)
    if profile is None:
        return False
    if image.mode in ("CMYK", "L"):
        return _transform(profile, image.mode) is not None
    return not _like_srgb(profile)


def is_deep_grey(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and not image.has_transparency_data and not converts_colours(image)


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(row of its top, part of the picture)."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _flat_bands(image: Image.Image, background: Colour) -> Iterator[tuple[int, Image.Image]]:
    flat = _flattening(image, background)
    return ((top, flat(band)) for top, band in _bands(image))


def _flattening(image: Image.Image, background: Colour) -> Callable[[Image.Image], Image.Image]:
    """What makes a band of this picture RGB."""
    if is_deep_grey(image):
        return lambda band: _from_16_bit(band).convert("RGB")
    transparent, profile = image.has_transparency_data, _profile(image)
    mode = "RGB" if transparent or image.mode not in ("RGB", "CMYK", "L") else image.mode
    wanted = profile is not None and not (mode == "RGB" and _like_srgb(profile))
    transform = _transform(profile, mode) if profile is not None and wanted else None

    def flat(band: Image.Image) -> Image.Image:
        rgba = band.convert("RGBA") if transparent else band
        colour = rgba if rgba.mode == mode else rgba.convert(mode)
        colour = transform.apply(colour) if transform else colour.convert("RGB")
        if not transparent:
            return colour
        return Image.composite(colour, Image.new("RGB", colour.size, background), rgba.getchannel("A"))

    return flat


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits -> L. Pillow's own convert clips at 255, which turns nearly all of it white."""
    values = np.asarray(image, dtype=np.int64)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _profile(image: Image.Image) -> bytes | None:
    found = image.info.get("icc_profile")
    return found if isinstance(found, bytes) and found else None


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None for one that is broken or of another colour space, which viewers ignore as well."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _like_srgb(profile: bytes) -> bool:
    """Whether RGB colours move by at most 3 of 255: the many spellings of sRGB do, Display P3 and Adobe RGB do not."""
    transform = _transform(profile, "RGB")
    if transform is None:
        return True
    ramp = np.linspace(0, 255, 6).astype(np.uint8)
    cube = np.stack(np.meshgrid(ramp, ramp, ramp), axis=-1).reshape(6, 36, 3)
    moved = np.asarray(transform.apply(Image.fromarray(cube)), np.int16) - cube
    return int(np.abs(moved).max()) <= 3
