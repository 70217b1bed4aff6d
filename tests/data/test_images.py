import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw
from support.nasty_folder import bomb, cut_out, encoded, picture, sixteen_bit, turned

from finetune.data import images
from finetune.data.images import Bucket, Size, Unusable
from finetune.errors import DataError

PLANS = [(r * r, s, a) for r in (64, 500, 512, 768, 1024) for s in (8, 16, 64) for a in (1.0, 1.5, 2.0, 4.0)]


def saved(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def distance(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of any channel of any pixel, of 255."""
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


@pytest.mark.parametrize("area,stride,aspect", PLANS)
def test_buckets_keep_to_area_stride_and_aspect(area: int, stride: int, aspect: float) -> None:
    buckets = images.plan_buckets(area, stride, aspect)
    assert buckets and len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % stride == height % stride == 0
        assert width * height <= area
        assert max(width, height) <= aspect * min(width, height)


@pytest.mark.parametrize("area,stride,aspect", PLANS)
def test_buckets_are_symmetric_have_a_square_and_use_most_of_the_area(area: int, stride: int, aspect: float) -> None:
    buckets = images.plan_buckets(area, stride, aspect)
    assert {(b.height, b.width) for b in buckets} == set(buckets)
    side = math.isqrt(area) // stride * stride
    assert (side, side) in buckets
    exact = side * side == area
    assert all(b.width * b.height >= (0.75 if exact else 0.7) * area for b in buckets if b != (side, side))


def test_the_plan_for_512_is_the_known_one() -> None:
    expected = [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert images.plan_buckets(512 * 512, 64, 2.0) == expected


def test_aspect_one_gives_the_square_only() -> None:
    assert images.plan_buckets(500 * 500, 64, 1.0) == [(448, 448)]


def test_a_resolution_below_the_stride_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"32 px is less than 64 px"):
        images.plan_buckets(32 * 32, 64, 2.0)


def test_the_chosen_bucket_loses_least_for_every_size() -> None:
    buckets = images.plan_buckets(512 * 512, 64, 2.0)
    for width, height in np.random.default_rng(0).integers(32, 4000, (300, 2)).tolist():
        size = Size(width, height)
        loss = images.crop_loss(size, images.choose_bucket(size, buckets))
        assert loss == min(images.crop_loss(size, b) for b in buckets)
        assert 0 <= loss < 1


def test_crop_loss_is_the_share_of_pixels_that_fit_drops() -> None:
    assert images.crop_loss(Size(200, 100), Bucket(64, 64)) == pytest.approx(0.5)
    assert images.crop_loss(Size(300, 200), Bucket(96, 64)) == 0.0
    stripes = Image.new("RGB", (200, 100), "white")
    stripes.paste("black", (0, 0, 50, 100))
    stripes.paste("black", (150, 0, 200, 100))
    assert np.asarray(images.fit(stripes, Bucket(64, 64))).min() > 230  # the filter reaches a pixel over the edge


def test_fit_gives_the_bucket_exactly_for_awkward_sizes() -> None:
    for width, height in [(33, 97), (1001, 999), (64, 64), (37, 36), (2047, 700), (64, 128)]:
        for bucket in (Bucket(64, 64), Bucket(96, 48), Bucket(48, 80)):
            for place in (0.0, 0.3, 1.0):
                assert images.fit(Image.new("RGB", (width, height)), bucket, place).size == bucket


@pytest.mark.parametrize("size", [(400, 400), (640, 400), (400, 700)])
def test_a_circle_stays_a_circle(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    x, y = size[0] / 2, size[1] / 2
    ImageDraw.Draw(image).ellipse((x - 100, y - 100, x + 100, y + 100), fill="black")
    dark = np.asarray(images.fit(image, Bucket(192, 128)).convert("L")) < 128
    wide, tall = dark.any(axis=0).sum(), dark.any(axis=1).sum()
    assert abs(int(wide) - int(tall)) <= 1


def test_place_0_and_1_touch_the_edges() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste("red", (0, 0, 20, 100))
    image.paste("blue", (280, 0, 300, 100))
    left, middle, right = (np.asarray(images.fit(image, Bucket(100, 100), p)) for p in (0.0, 0.5, 1.0))
    assert left[50, 0].tolist() == [255, 0, 0] and left[50, -1].tolist() == [255, 255, 255]
    assert middle.min() == 255
    assert right[50, -1].tolist() == [0, 0, 255] and right[50, 0].tolist() == [255, 255, 255]
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert np.asarray(images.fit(upright, Bucket(100, 100), 0.0))[0, 50].tolist() == [255, 0, 0]


def test_flip_mirrors_what_was_cut_out() -> None:
    image = picture(1, (300, 100))
    plain = images.fit(image, Bucket(64, 64), 0.2)
    assert (
        distance(images.fit(image, Bucket(64, 64), 0.2, flip=True), plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        == 0
    )


def test_downscaling_is_antialiased() -> None:
    checks = Image.fromarray(np.kron(np.indices((256, 256)).sum(0) % 2, np.ones((1, 1))).astype(np.uint8) * 255)
    small = np.asarray(images.fit(checks.convert("RGB"), Bucket(32, 32)))
    assert np.abs(small[4:-4, 4:-4].astype(int) - 127).max() <= 3


def test_to_array_is_channels_first_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (5, 3), (0, 255, 0))
    array = images.to_array(image)
    assert array.shape == (3, 3, 5) and array.dtype == np.float32 and array.flags.c_contiguous
    assert (array[0] == -1).all() and (array[1] == 1).all()
    back = np.round((images.to_array(picture(3)) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    assert distance(Image.fromarray(back), picture(3)) == 0


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_upright_picture(orientation: int, form: str, tmp_path: Path) -> None:
    upright = picture(4)
    undo = images._TURNS | {6: images._TURNS[8], 8: images._TURNS[6]}
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    options = {"lossless": True} if form == "WEBP" else {}
    file = saved(tmp_path, f"a.{form.lower()}", turned(stored, orientation, form, **options))
    assert distance(images.open_rgb(file), upright) == 0
    assert images.inspect(file).size == images.inspect(file, decode=False).size == upright.size
    assert images.inspect(file).orientation == orientation


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    data = encoded(picture(5), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1")
    assert images.open_rgb(saved(tmp_path, "a.jpg", data)).size == picture(5).size


@pytest.mark.parametrize("background", [(255, 255, 255), (200, 30, 7)])
def test_a_cut_out_stored_as_black_gets_the_background(background: tuple[int, int, int], tmp_path: Path) -> None:
    file = saved(tmp_path, "cut.png", encoded(cut_out(6), "PNG"))
    flat = images.open_rgb(file, background)
    assert flat.mode == "RGB" and flat.getpixel((0, 0)) == background
    assert distance(flat.crop((28, 20, 68, 60)), picture(6, (40, 40))) == 0


def test_transparency_of_a_palette_and_of_a_grey_is_composited(tmp_path: Path) -> None:
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (32, 0, 64, 64))
    flat = images.open_rgb(saved(tmp_path, "p.png", encoded(palette, "PNG", transparency=0)))
    assert flat.getpixel((0, 0)) == (255, 255, 255) and flat.getpixel((63, 0)) == (255, 0, 0)
    grey = images.open_rgb(saved(tmp_path, "la.png", encoded(Image.new("LA", (64, 64), (0, 0)), "PNG")))
    assert grey.getpixel((0, 0)) == (255, 255, 255)
    half = images.open_rgb(saved(tmp_path, "half.png", encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), "PNG")))
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_16_bits_keep_their_gradient(tmp_path: Path) -> None:
    file = saved(tmp_path, "deep.png", encoded(sixteen_bit(7), "PNG"))
    assert distance(images.open_rgb(file), picture(7).convert("L").convert("RGB")) == 0
    tiff = saved(tmp_path, "deep.tiff", encoded(sixteen_bit(7), "TIFF"))
    assert distance(images.open_rgb(tiff), images.open_rgb(file)) == 0
    assert images.inspect(file).bits == images.inspect(tiff).bits == 16


def test_cmyk_becomes_the_colour_meant(tmp_path: Path) -> None:
    file = saved(tmp_path, "cmyk.jpg", encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=100))
    assert distance(images.open_rgb(file), Image.new("RGB", (64, 64), (255, 0, 0))) <= 3


def test_a_colour_profile_is_converted_and_srgb_is_left_alone(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = saved(tmp_path, "srgb.png", encoded(picture(8), "PNG", icc_profile=srgb))
    assert images.plain(images.inspect(file)) and distance(images.open_rgb(file), picture(8)) == 0
    swapped = bytearray(srgb)  # red and green primaries exchanged: a profile no one can mistake for sRGB
    red, green = swapped.index(b"rXYZ", 128), swapped.index(b"gXYZ", 128)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    data = encoded(Image.new("RGB", (64, 64), (200, 0, 0)), "PNG", icc_profile=bytes(swapped))
    file = saved(tmp_path, "swapped.png", data)
    facts = images.inspect(file)
    assert facts.profile and not images.plain(facts)
    red_value, green_value, _ = images.open_rgb(file).getpixel((5, 5))
    assert green_value > 150 > red_value


def test_every_format_opens_in_a_fresh_process(tmp_path: Path) -> None:
    formats = [*images.FORMATS, "MPO"]
    for form in formats:
        options = {"save_all": True, "append_images": [picture(2)]} if form == "MPO" else {}
        saved(tmp_path, form.lower(), encoded(picture(1), form, **options))
    code = "import sys; from pathlib import Path; from finetune.data import images\n"
    code += "print([images.inspect(p).format for p in sorted(Path(sys.argv[1]).iterdir())])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.strip() == str(sorted(formats)), run.stderr


def test_planning_and_decoding_need_no_torch() -> None:
    heavy = "{'torch', 'datasets', 'transformers', 'rich'}"
    code = f"import sys, finetune.data.dataset; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"bomb\.png.*pixels") as caught:
        images.open_rgb(saved(tmp_path, "bomb.png", bomb()))
    assert caught.value.reason == "image bomb" and caught.value.exit_code == 2


def test_a_large_photo_within_bounds_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # the picture is between Pillow's warning and its error
    assert images.open_rgb(saved(tmp_path, "a.jpg", encoded(picture(9), "JPEG"))).size == picture(9).size


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_a_file_cut_anywhere_names_itself_or_is_whole(form: str, tmp_path: Path) -> None:
    data = encoded(picture(10), form)
    for cut in {1, 5, 11, 30, *np.linspace(40, len(data) - 40, 12).astype(int).tolist()}:
        with pytest.raises(Unusable) as caught:
            images.open_rgb(saved(tmp_path, f"cut.{form.lower()}", data[:cut]))
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
                images.inspect(file)
                assert images.open_rgb(file).mode == "RGB"
            except Unusable as e:
                assert e.reason


def test_heic_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="export it as JPEG") as caught:
        images.open_rgb(saved(tmp_path, "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"))
    assert caught.value.reason == "unsupported type"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        images.open_rgb(tmp_path / "gone.jpg")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("F", (64, 64)).save(buffer, "TIFF")
    file = saved(tmp_path, "f.tiff", buffer.getvalue())
    for look in (images.inspect, images.open_rgb):
        with pytest.raises(Unusable, match="floating-point"):
            look(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    file = saved(tmp_path, "a.jpg", encoded(picture(1), "JPEG"))
    file.chmod(0)
    with pytest.raises(Unusable) as caught:
        images.open_rgb(file)
    assert caught.value.reason == "unreadable"
