"""How files of pictures are told apart: the ends of their names, and their first bytes."""

import re

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
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}
"""The usual extensions of each format, the best first."""
IMAGE_SUFFIXES = tuple(dict.fromkeys(suffix for known in SUFFIXES.values() for suffix in known))

JPEG_XL_MAGIC = (b"\0\0\0\x0cJXL", b"\xff\x0a")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
_BEGINNINGS = (
    ("PNG", (b"\x89PNG",)), ("JPEG", (b"\xff\xd8\xff",)), ("GIF", (b"GIF8",)), ("BMP", (b"BM",)),
    ("TIFF", (b"II*\0", b"MM\0*")), ("JXL", JPEG_XL_MAGIC),
)  # fmt: skip
_PPM = re.compile(rb"P[1-7]\s")


def format_of(data: bytes) -> str:
    """The format, a key of SUFFIXES, of a picture that begins so; empty: of none that is known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "AVIF" if brand in AVIF_BRANDS else "HEIF" if brand in HEIF_BRANDS else ""
    return next((name for name, some in _BEGINNINGS if data.startswith(some)), "PPM" if _PPM.match(data) else "")
