"""HEIC is read where pillow-heif is installed, JPEG XL where its plugin is; otherwise it is said what to install."""

import io
from pathlib import Path

import pytest
from PIL import Image
from support.sources import picture_bytes, prepared_from

from finetune.data.images import costs, decode, plugins
from finetune.data.images.diagnose import Unusable
from finetune.data.images.jpeg_xl import JpegXlHeader, jpeg_xl_header
from finetune.data.images.plugins import HEIF

pillow_heif = pytest.importorskip("pillow_heif")


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    """As phones write it: turned, and said so."""
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(io.BytesIO(picture_bytes(1, size=(96, 64))))
    (tmp_path / "photos").mkdir()
    picture.save(tmp_path / "photos" / "IMG_1.HEIC", "HEIF", exif=exif.tobytes(), quality=95)
    return tmp_path / "photos" / "IMG_1.HEIC"


def test_a_heic_photo_is_trained_on_upright_as_png(heic):
    info = decode.read_info(heic)
    assert (info.format, info.size) == ("HEIF", (64, 96)) and decode.notes(info, heic.suffix) == []
    made, _ = prepared_from(heic.parent, heic.parent.parent / "made")
    (example,) = made.examples
    upright = Image.open(io.BytesIO(picture_bytes(1, size=(96, 64)))).transpose(Image.Transpose.ROTATE_270)
    found = Image.open(example.path)
    assert example.name == "images/IMG_1.png" and found.size == upright.size
    assert sum(abs(a - b) for a, b in zip(found.tobytes(), upright.tobytes(), strict=True)) / len(found.tobytes()) < 6


def test_without_pillow_heif_it_is_said_what_to_install(heic, monkeypatch):
    monkeypatch.setattr(plugins, "_register", lambda plugin: False)
    with pytest.raises(Unusable, match=r"install `finetune-diffusion\[heic\]`") as refused:
        decode.read_info(heic)
    assert refused.value.reason == "unsupported type"


def test_a_module_that_is_not_there_is_no_plugin(monkeypatch):
    absent = HEIF._replace(module="no_such_module")
    assert plugins._register(absent) is False


def test_a_damaged_heic_is_not_answered_with_an_installation(heic):
    heic.write_bytes(heic.read_bytes()[:700])
    with pytest.raises(Unusable, match="a HEIC file that is damaged"):
        decode.read_info(heic)


def test_several_pictures_in_one_heic_are_refused(heic):
    picture = Image.open(io.BytesIO(picture_bytes(2)))
    picture.save(heic, "HEIF", save_all=True, append_images=[picture.rotate(90)])
    with pytest.raises(Unusable) as refused:
        decode.read_info(heic)
    assert refused.value.reason == "animated"


JPEG_XL = {
    "ff0a0f07": JpegXlHeader(96, 64, True), "ff0ae001c00c0013880200f8": JpegXlHeader(97, 61, True),
    "ff0af89f": JpegXlHeader(512, 512, True), "ff0aba211d00138802009040": JpegXlHeader(1920, 1080, True),
    "ff0a4906": JpegXlHeader(40, 40, True),
}  # fmt: skip
"""the first bytes of files that libjxl wrote"""


@pytest.mark.parametrize("start", JPEG_XL)
def test_the_size_of_a_jpeg_xl_is_read_without_its_decoder(start):
    found = JPEG_XL[start]
    assert jpeg_xl_header(bytes.fromhex(start) + bytes(60))[:2] == found[:2]


def test_a_jpeg_xl_of_too_many_pixels_is_refused_before_it_is_opened():
    large = bytes.fromhex("ff0a") + (0b1111111111111111111111111111_00_0_11_0 | (1 << 60)).to_bytes(60, "little")
    assert jpeg_xl_header(large).height > 100_000_000
    with pytest.raises(Unusable) as refused:
        costs.refuse_costly_plugin(Path("a.jxl"), large)
    assert refused.value.reason == "image bomb"
    with pytest.raises(ValueError, match="ends inside its header"):
        jpeg_xl_header(b"\xff\x0a\xff")


def test_without_its_plugin_a_jpeg_xl_is_to_be_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_register", lambda plugin: False)
    (tmp_path / "a.jxl").write_bytes(bytes.fromhex("ff0a0f07") + bytes(50))
    with pytest.raises(Unusable, match="a JPEG XL file; export it as PNG"):
        decode.read_info(tmp_path / "a.jxl")
