"""How large a JPEG XL picture is, from its first bits (ISO/IEC 18181-1): its decoder would unpack it to tell."""

import struct
from typing import NamedTuple

_WIDTHS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class JpegXlHeader(NamedTuple):
    width: int
    height: int
    still: bool
    """False: it is animated, or holds a preview, after which this is not told."""


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("it ends inside its header")
        found = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return found


def jpeg_xl_header(data: bytes) -> JpegXlHeader:
    """Raises ValueError: it is cut short, or no JPEG XL."""
    bits = _Bits(_codestream(data)[2:66])
    width, height = _size(bits)
    still = True
    if not bits.take(1) and bits.take(1):  # not all is usual, and there is more
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)
        still = not bits.take(1) and not bits.take(1)
    return JpegXlHeader(width, height, still)


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.take(_WIDTHS[bits.take(2)]) + 1

    height = side()
    if ratio := bits.take(3):
        over, under = _RATIOS[ratio - 1]
        return height * over // under, height
    return side(), height


def _codestream(data: bytes) -> bytes:
    """The picture itself, which may lie in a box of a container."""
    if data.startswith(b"\xff\x0a"):
        return data[:66]
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 16 if length == 1 else 8
        if length == 1:
            length = struct.unpack_from(">Q", data, at + 8)[0]
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + 4 * (kind == b"jxlp")
            found = data[start : start + 66]
            if found.startswith(b"\xff\x0a"):
                return found
            break
        if length < head:
            break
        at += length
    raise ValueError("its header is damaged")
