"""What a small picture file could cost before and while it is decoded, and where that is refused.

A file of a few kilobytes may name any number of pixels, frames, scans and characters of text. Within these limits a
picture takes up to 2 GB and some seconds.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

from PIL import Image

from finetune.data.images.diagnose import Unusable
from finetune.data.images.jpeg_xl import jpeg_xl_header
from finetune.data.images.signatures import JPEG_XL_MAGIC

MAX_FILE_BYTES = 512 << 20
MAX_PIXELS = 160_000_000
"""The largest camera sensors have 151 million; a progressive JPEG takes 12 bytes for each."""
_FEWER_PIXELS = {"WEBP": 80_000_000, "AVIF": 80_000_000}
"""Their decoders hold up to five copies of a picture. WebP allows 268 million."""
_SLOW_CODECS = {"ppm", "ppm_plain", "bmp_rle"}
"""Pillow decodes these in Python, a million pixels or so a second."""
_SLOW_PIXELS = 4_000_000
_SCANNED_PIXELS = 3_200_000_000
"""Pixels times passes over them. A progressive JPEG has 10 to 18 scans; thousands of empty ones take minutes."""
MAX_TEXT_BYTES = 1 << 20
"""of one text in a PNG. Pillow reads no longer one where it is compressed; ComfyUI writes workflows of several."""
_ALL_TEXTS_BYTES = 16 << 20
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG = b"\x89PNG\r\n\x1a\n"


def refuse_costly(path: Path, image: Image.Image, data: bytes) -> None:
    """image: its header only was read.

    Raises:
        Unusable: it has several frames, or too many pixels or passes over them.
    """
    most = _most_pixels(image)
    shown, pixels = f"{image.width} x {image.height}", image.width * image.height
    if pixels > most:
        kind = f"a {image.format} of this kind" if most < MAX_PIXELS else "a picture"
        raise Unusable(
            path, "image bomb", f"{shown} is more than the {most:,} pixels that {kind} may have; save it smaller"
        )
    if image.format in ("JPEG", "MPO") and pixels * (scans := data.count(b"\xff\xda")) > max(_SCANNED_PIXELS, pixels):
        raise Unusable(path, "image bomb", f"its {shown} pixels are stored in {scans:,} passes; save it anew")
    # a camera's MPO holds the photo, then its preview or other eye; counting the frames of a GIF reads them all
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise Unusable(path, "animated", "it has several frames or pages; save the frame you want as PNG")


def refuse_costly_plugin(path: Path, data: bytes) -> None:
    """For a format whose decoder unpacks a picture when it is opened.

    Raises:
        Unusable: it would be refused then. ValueError: its header is damaged.
    """
    if not data.startswith(JPEG_XL_MAGIC):
        return
    width, height, still = jpeg_xl_header(data)
    if width * height > MAX_PIXELS:
        raise Unusable(
            path,
            "image bomb",
            f"{width} x {height} is more than the {MAX_PIXELS:,} pixels a picture may have; save it smaller",
        )
    if not still:
        raise Unusable(path, "animated", "it has several frames or a preview; save the frame you want as PNG")


def share(image: Image.Image) -> float:
    """What it takes of the memory that one picture may take, in [0, 1]."""
    return min(1.0, image.width * image.height / _most_pixels(image))


def _most_pixels(image: Image.Image) -> int:
    return min(_FEWER_PIXELS.get(str(image.format), MAX_PIXELS), _SLOW_PIXELS if _is_slow(image) else MAX_PIXELS)


def _is_slow(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", [])
    return bool(tiles) and tiles[0][0] in _SLOW_CODECS


def without_long_texts(path: Path, data: bytes) -> bytes:
    """A PNG file without its texts of more than MAX_TEXT_BYTES; any other file, and one without such texts, as it is.

    Raises:
        Unusable: its colour profile has more than MAX_TEXT_BYTES, which cannot be left out.
    """
    if not data.startswith(_PNG):
        return data
    kept, left = list[bytes | memoryview]([data[: len(_PNG)]]), 0
    texts = 0
    for kind, chunk in _chunks(data):
        if kind in _TEXTS:
            texts += (size := _text_bytes(kind, chunk))
            if size > MAX_TEXT_BYTES or texts > _ALL_TEXTS_BYTES:
                left += 1
                continue
        if kind == b"iCCP" and _text_bytes(b"zTXt", chunk) > MAX_TEXT_BYTES:
            raise Unusable(path, "unsupported type", "its colour profile has more than 1 MiB; save it in sRGB")
        kept.append(chunk)
    return b"".join(kept) if left else data


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, the whole chunk) of a PNG; what follows a broken chunk comes as one piece."""
    whole, at = memoryview(data), len(_PNG)
    while at < len(data):
        length = struct.unpack_from(">I", data, at)[0] if at + 12 <= len(data) else len(data)
        end = at + 12 + length
        if end > len(data):
            yield b"", whole[at:]
            return
        yield data[at + 4 : at + 8], whole[at:end]
        at = end


def _text_bytes(kind: bytes, chunk: memoryview) -> int:
    """Bytes of a text chunk's text when it is inflated, counted no further than is needed."""
    body = chunk[8:-4]
    if kind == b"tEXt" or len(body) > MAX_TEXT_BYTES:
        return len(body)
    _, _, rest = bytes(body).partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return len(body)
        rest = b"\0" + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        inflating = zlib.decompressobj()
        return len(inflating.decompress(rest[1:], MAX_TEXT_BYTES)) + len(inflating.unconsumed_tail)
    except zlib.error:  # readers take it for empty
        return 0


class Room:
    """What all threads of this process may hold of something together: as much as one picture may take of it."""

    def __init__(self, most: float) -> None:
        self._most = self._free = most
        self._freed = Condition()

    @contextmanager
    def taken(self, amount: float) -> Iterator[None]:
        """Waits until there is so much."""
        amount = min(amount, self._most)
        with self._freed:
            self._freed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._freed:
                self._free += amount
                self._freed.notify_all()


FILES, PICTURES = Room(MAX_FILE_BYTES), Room(1.0)
"""bytes of files, and shares of the largest picture, that this process decodes at once. Files are taken first: who
waits for its share of pictures waits for nobody who waits for files."""
