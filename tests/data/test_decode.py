import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.nasty_folder import bomb, cut_out, encoded, picture, sixteen_bit, turned

from finetune.data.images import decode
from finetune.data.images.diagnose import Unusable
from finetune.errors import DataError


def saved(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def distance(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of any channel of any pixel, of 255."""
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_upright_picture(orientation: int, form: str, tmp_path: Path) -> None:
    upright = picture(4)
    undo = decode._TURNS | {6: decode._TURNS[8], 8: decode._TURNS[6]}
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    options = {"lossless": True} if form == "WEBP" else {}
    file = saved(tmp_path, f"a.{form.lower()}", turned(stored, orientation, form, **options))
    assert distance(decode.open_rgb(file), upright) == 0
    assert decode.read_info(file).size == decode.read_info(file, decode=False).size == upright.size
    assert decode.read_info(file).orientation == orientation


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    data = encoded(picture(5), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1")
    assert decode.open_rgb(saved(tmp_path, "a.jpg", data)).size == picture(5).size


@pytest.mark.parametrize("background", [(255, 255, 255), (200, 30, 7)])
def test_a_cut_out_stored_as_black_gets_the_background(background: tuple[int, int, int], tmp_path: Path) -> None:
    file = saved(tmp_path, "cut.png", encoded(cut_out(6), "PNG"))
    flat = decode.open_rgb(file, background)
    assert flat.mode == "RGB" and flat.getpixel((0, 0)) == background
    assert distance(flat.crop((28, 20, 68, 60)), picture(6, (40, 40))) == 0


def test_transparency_of_a_palette_and_of_a_grey_is_composited(tmp_path: Path) -> None:
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (32, 0, 64, 64))
    flat = decode.open_rgb(saved(tmp_path, "p.png", encoded(palette, "PNG", transparency=0)))
    assert flat.getpixel((0, 0)) == (255, 255, 255) and flat.getpixel((63, 0)) == (255, 0, 0)
    grey = decode.open_rgb(saved(tmp_path, "la.png", encoded(Image.new("LA", (64, 64), (0, 0)), "PNG")))
    assert grey.getpixel((0, 0)) == (255, 255, 255)
    half = decode.open_rgb(saved(tmp_path, "half.png", encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), "PNG")))
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_16_bits_keep_their_gradient(tmp_path: Path) -> None:
    file = saved(tmp_path, "deep.png", encoded(sixteen_bit(7), "PNG"))
    assert distance(decode.open_rgb(file), picture(7).convert("L").convert("RGB")) == 0
    tiff = saved(tmp_path, "deep.tiff", encoded(sixteen_bit(7), "TIFF"))
    assert distance(decode.open_rgb(tiff), decode.open_rgb(file)) == 0
    assert decode.read_info(file).bits == decode.read_info(tiff).bits == 16


def test_cmyk_becomes_the_colour_meant(tmp_path: Path) -> None:
    file = saved(tmp_path, "cmyk.jpg", encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=100))
    assert distance(decode.open_rgb(file), Image.new("RGB", (64, 64), (255, 0, 0))) <= 3


def test_a_colour_profile_is_converted_and_srgb_is_left_alone(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = saved(tmp_path, "srgb.png", encoded(picture(8), "PNG", icc_profile=srgb))
    assert decode.needs_no_change(decode.read_info(file)) and distance(decode.open_rgb(file), picture(8)) == 0
    swapped = bytearray(srgb)  # red and green primaries exchanged: a profile no one can mistake for sRGB
    red, green = swapped.index(b"rXYZ", 128), swapped.index(b"gXYZ", 128)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    data = encoded(Image.new("RGB", (64, 64), (200, 0, 0)), "PNG", icc_profile=bytes(swapped))
    file = saved(tmp_path, "swapped.png", data)
    info = decode.read_info(file)
    assert info.profile and not decode.needs_no_change(info)
    red_value, green_value, _ = decode.open_rgb(file).getpixel((5, 5))
    assert green_value > 150 > red_value


def test_every_format_opens_in_a_fresh_process(tmp_path: Path) -> None:
    formats = [*decode.IMAGE_FORMATS, "MPO"]
    for form in formats:
        options = {"save_all": True, "append_images": [picture(2)]} if form == "MPO" else {}
        saved(tmp_path, form.lower(), encoded(picture(1), form, **options))
    code = "import sys; from pathlib import Path; from finetune.data.images import decode\n"
    code += "print([decode.read_info(p).format for p in sorted(Path(sys.argv[1]).iterdir())])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.strip() == str(sorted(formats)), run.stderr


def test_planning_and_decoding_need_no_torch() -> None:
    code = "import sys, finetune.data.dataset as d; "
    code += "sys.exit(bool({'torch', 'datasets', 'transformers', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"bomb\.png.*pixels") as caught:
        decode.open_rgb(saved(tmp_path, "bomb.png", bomb()))
    assert caught.value.reason == "image bomb" and caught.value.exit_code == 2


def test_a_large_photo_within_bounds_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # the picture is between Pillow's warning and its error
    assert decode.open_rgb(saved(tmp_path, "a.jpg", encoded(picture(9), "JPEG"))).size == picture(9).size


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_a_file_cut_anywhere_names_itself_or_is_whole(form: str, tmp_path: Path) -> None:
    data = encoded(picture(10), form)
    for cut in {1, 5, 11, 30, *np.linspace(40, len(data) - 40, 12).astype(int).tolist()}:
        with pytest.raises(Unusable) as caught:
            decode.open_rgb(saved(tmp_path, f"cut.{form.lower()}", data[:cut]))
        assert "cut." in caught.value.problem and caught.value.reason in (
            "truncated",
            "corrupt",
            "not an image",
            "unsupported type",
        )


def test_random_damage_is_never_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        data = turned(picture(11), 6, form) if form in ("JPEG", "PNG", "WEBP") else encoded(picture(11), form)
        for _ in range(40):
            broken = bytearray(data)
            for spot in rng.integers(0, min(len(data), 400), 3):
                broken[spot] = rng.integers(0, 256)
            file = saved(tmp_path, "x", bytes(broken))
            try:
                decode.read_info(file)
                assert decode.open_rgb(file).mode == "RGB"
            except Unusable as e:
                assert e.reason


def test_heic_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="export it as JPEG") as caught:
        decode.open_rgb(saved(tmp_path, "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"))
    assert caught.value.reason == "unsupported type"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        decode.open_rgb(tmp_path / "gone.jpg")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("F", (64, 64)).save(buffer, "TIFF")
    file = saved(tmp_path, "f.tiff", buffer.getvalue())
    for look in (decode.read_info, decode.open_rgb):
        with pytest.raises(Unusable, match="floating-point"):
            look(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    file = saved(tmp_path, "a.jpg", encoded(picture(1), "JPEG"))
    file.chmod(0)
    with pytest.raises(Unusable) as caught:
        decode.open_rgb(file)
    assert caught.value.reason == "unreadable"
