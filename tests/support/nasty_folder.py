"""A folder of exactly 40 files such as users have, and what must become of each."""

import csv
import io
import json
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = (96, 80)


class Expected(NamedTuple):
    used: dict[str, str]
    """file -> a phrase of its notes; "" for none"""
    rejected: dict[str, str]
    """file -> reason"""
    captions: set[str]
    ignored: set[str]


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth and unlike any other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int, form: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif, **options)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 40,000 x 40,000."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def sixteen_bit(seed: int) -> Image.Image:
    return Image.fromarray(np.asarray(picture(seed).convert("L"), dtype=np.uint16) * 257)


def cut_out(seed: int) -> Image.Image:
    """A product on transparency whose hidden pixels are black, as most editors store them."""
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste(picture(seed, (40, 40)), (28, 20))
    return image


def build(root: Path) -> Expected:
    root.mkdir(parents=True)
    (root / "sub").mkdir()
    (root / ".hidden").mkdir()
    jpeg = encoded(picture(1), "JPEG")
    used: dict[str, tuple[bytes, str]] = {
        "plain.jpg": (jpeg, ""),
        "IMG_0002.JPG": (encoded(picture(2), "JPEG"), ""),
        "scan.JPEG": (encoded(picture(3), "JPEG"), ""),
        "web.WebP": (encoded(picture(4), "WEBP"), ""),
        "plain.png": (encoded(picture(5), "PNG"), ""),
        "phone.jpg": (turned(picture(6), 6), "EXIF rotation applied"),
        "cutout.png": (encoded(cut_out(7), "PNG"), "alpha composited on white"),
        "opaque.png": (encoded(picture(8).convert("RGBA"), "PNG"), "opaque alpha channel dropped"),
        "print.jpg": (encoded(picture(9).convert("CMYK"), "JPEG"), "CMYK converted"),
        "deep.png": (encoded(sixteen_bit(10), "PNG"), "16 bits a channel reduced to 8"),
        "grey.jpg": (encoded(picture(11).convert("L"), "JPEG"), "grey converted"),
        "palette.png": (encoded(picture(12).quantize(16), "PNG"), "palette converted"),
        "really_png.jpg": (encoded(picture(13), "PNG"), "is a PNG whatever its name says"),
        "no_extension": (encoded(picture(14), "JPEG"), "is a JPEG whatever its name says"),
        "tasse_ü_杯子.jpg": (encoded(picture(15), "JPEG"), ""),
        "sub/scan.tiff": (encoded(picture(16), "TIFF"), ""),
        "sub/still.gif": (encoded(picture(17), "GIF"), "palette converted"),
        "sub/plain.jpg": (encoded(picture(18), "JPEG"), ""),
        "sub/with space.bmp": (encoded(picture(19), "BMP"), ""),
    }
    rejected: dict[str, tuple[bytes, str]] = {
        "zero.jpg": (b"", "zero bytes"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (encoded(picture(5), "PNG")[:2000], "truncated"),
        "damaged.png": (_flipped(encoded(picture(20), "PNG")), "corrupt"),
        "download.jpg": (b"<!DOCTYPE html>\n<html><body>403 Forbidden</body></html>", "not an image"),
        "noise.png": (bytes(range(1, 200)), "not an image"),
        "manual.pdf": (b"%PDF-1.7 ...", "unsupported type"),
        "IMG_0003.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported type"),
        "logo.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported type"),
        "clip.mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "unsupported type"),
        "dance.gif": (_animated(), "animated"),
        "thumb.png": (encoded(picture(21, (24, 24)), "PNG"), "too small"),
        "banner.jpg": (encoded(picture(22, (500, 60)), "JPEG"), "extreme aspect"),
        "sub/plain copy.jpg": (jpeg, "exact duplicate"),
        "bomb.png": (bomb(), "image bomb"),
        "lost.txt": (b"a caption whose picture was deleted", "caption without image"),
    }
    ignored = {".DS_Store", "Thumbs.db", ".hidden/old.jpg"}
    for name, (data, _) in {**used, **rejected}.items():
        (root / name).write_bytes(data)
    for name in ignored:
        (root / name).write_bytes(b"\0\0\0\1Bud1")
    (root / "outside.jpg").symlink_to(root.parent / "elsewhere.jpg")
    (root.parent / "elsewhere.jpg").write_bytes(encoded(picture(30), "JPEG"))
    _write_table(root / "metadata.csv", [*used, *(name for name, (data, _) in rejected.items() if name != "lost.txt")])
    return Expected(
        {name: note for name, (_, note) in used.items()},
        {name: reason for name, (_, reason) in rejected.items()} | {"outside.jpg": "link"},
        {"metadata.csv"},
        ignored,
    )


def write_jsonl(file: Path, rows: dict[str, str]) -> None:
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in rows.items()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_table(file: Path, names: list[str]) -> None:
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file_name", "text"])
        rows.writerows([name, f"a photo of a mug, view {i}"] for i, name in enumerate(names))


def _animated() -> bytes:
    return encoded(picture(23), "GIF", save_all=True, append_images=[picture(24), picture(25)])


def _flipped(data: bytes) -> bytes:
    """One byte of the compressed pixels inverted."""
    broken = bytearray(data)
    broken[data.index(b"IDAT") + 40] ^= 0xFF
    return bytes(broken)
