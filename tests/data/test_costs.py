"""What picture files cost: texts that are left out, passes that are counted, and colours made in bands."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from support.nasty_folder import encoded, picture, turned

from finetune.data.images import colours, costs, decode
from finetune.data.images.diagnose import Unusable

LONG = '{"nodes": [1, 2, 3]}' * 60_000


def noted(compressed: bool, international: bool, *texts: str) -> bytes:
    """A PNG with these texts."""
    about = PngImagePlugin.PngInfo()
    for n, text in enumerate(texts):
        if international:
            about.add_itxt(f"workflow {n}", text, zip=compressed)
        else:
            about.add_text(f"workflow {n}", text, zip=compressed)
    return encoded(picture(3), "PNG", pnginfo=about)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("international", [False, True])
def test_a_png_with_a_long_text_is_read_and_written_without_it(
    compressed: bool, international: bool, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(noted(compressed, international, "short", LONG))
    info = decode.read_info(file)
    assert decode.open_rgb(file).tobytes() == picture(3).tobytes()
    assert info.long_text and not decode.needs_no_change(info) and decode.read_info(file, decode=False) == info
    assert decode.notes(info, ".png") == ["text of more than 1 MiB left out"]
    kept = Image.open(io.BytesIO(costs.without_long_texts(file, file.read_bytes())))
    kept.load()
    assert dict(getattr(kept, "text", {})) == {"workflow 0": "short"}


def test_many_texts_are_read_that_are_long_together(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(noted(True, False, *[LONG[:900_000]] * 90))
    assert decode.read_info(file).long_text and decode.open_rgb(file).size == picture(3).size


def test_a_png_with_short_texts_is_copied_as_it_is(tmp_path: Path) -> None:
    data = noted(True, True, "short", LONG[: 1 << 19])
    assert costs.without_long_texts(tmp_path, data) is data
    cut = data[:-30]
    assert costs.without_long_texts(tmp_path, cut) is cut
    assert costs.without_long_texts(tmp_path, b"\xff\xd8 tEXt") == b"\xff\xd8 tEXt"


def test_a_colour_profile_that_no_reader_takes_is_named(tmp_path: Path) -> None:
    body = b"iCCPx\0\0" + zlib.compress(bytes(2 << 20))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = encoded(picture(3), "PNG")
    file = tmp_path / "a.png"
    file.write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(Unusable, match="profile has more than 1 MiB"):
        decode.read_info(file)


def test_the_orientation_in_a_text_is_still_applied(tmp_path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    about.add_text("workflow", LONG)
    file = tmp_path / "a.png"
    file.write_bytes(encoded(picture(3, (64, 48)), "PNG", pnginfo=about))
    assert decode.open_rgb(file).size == decode.read_info(file).size == (48, 64)


def test_a_jpeg_of_thousands_of_passes_is_refused_and_a_progressive_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(picture(3), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    scans = data.count(b"\xff\xda")
    monkeypatch.setattr(costs, "_SCANNED_PIXELS", picture(3).width * picture(3).height * (scans + 5))
    assert decode.open_rgb(file).size == picture(3).size
    file.write_bytes(data[:last] + data[last:-2] * 7 + data[-2:])
    with pytest.raises(Unusable, match=f"in {scans + 6} passes") as caught:
        decode.open_rgb(file)
    assert caught.value.reason == "image bomb"


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_bands_are_the_whole_picture(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = picture(6).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    made = {
        "alpha.png": encoded(rgba, "PNG"),
        "cmyk.jpg": encoded(picture(5).convert("CMYK"), "JPEG"),
        "palette.gif": encoded(picture(7).convert("P"), "GIF"),
        "turned.jpg": turned(picture(8), 6, "JPEG"),
        "grey.png": encoded(picture(8).convert("L"), "PNG"),
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    whole = {name: decode.open_rgb(tmp_path / name).tobytes() for name in made}
    digests = {name: decode.inspect_pixels(tmp_path / name, data, colours.WHITE) for name, data in made.items()}
    monkeypatch.setattr(colours, "BAND_PIXELS", rows * picture(6).width)
    assert whole == {name: decode.open_rgb(tmp_path / name).tobytes() for name in made}
    again = {name: decode.inspect_pixels(tmp_path / name, data, colours.WHITE) for name, data in made.items()}
    assert digests == again and len({digest for _, digest, _ in again.values()}) == len(made)
    composite = Image.composite(picture(6), Image.new("RGB", rgba.size, "white"), rgba.getchannel("A"))
    assert np.array_equal(np.asarray(composite), np.asarray(decode.open_rgb(tmp_path / "alpha.png")))
