import math

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.nasty_folder import picture

from finetune.data.images.buckets import Bucket, Size, choose_bucket, crop_loss, fit, plan_buckets, to_array
from finetune.errors import DataError

PLANS = [(r * r, s, a) for r in (64, 500, 512, 768, 1024) for s in (8, 16, 64) for a in (1.0, 1.5, 2.0, 4.0)]


def distance(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of any channel of any pixel, of 255."""
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


@pytest.mark.parametrize("area,stride,aspect", PLANS)
def test_buckets_keep_to_area_stride_and_aspect(area: int, stride: int, aspect: float) -> None:
    buckets = plan_buckets(area, stride, aspect)
    assert buckets and len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % stride == height % stride == 0
        assert width * height <= area
        assert max(width, height) <= aspect * min(width, height)


@pytest.mark.parametrize("area,stride,aspect", PLANS)
def test_buckets_are_symmetric_have_a_square_and_use_most_of_the_area(area: int, stride: int, aspect: float) -> None:
    buckets = plan_buckets(area, stride, aspect)
    assert {(b.height, b.width) for b in buckets} == set(buckets)
    side = math.isqrt(area) // stride * stride
    assert (side, side) in buckets
    exact = side * side == area
    assert all(b.width * b.height >= (0.75 if exact else 0.7) * area for b in buckets if b != (side, side))


def test_the_plan_for_512_is_the_known_one() -> None:
    expected = [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert plan_buckets(512 * 512, 64, 2.0) == expected


def test_aspect_one_gives_the_square_only() -> None:
    assert plan_buckets(500 * 500, 64, 1.0) == [(448, 448)]


def test_a_resolution_below_the_stride_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"32 px is less than 64 px"):
        plan_buckets(32 * 32, 64, 2.0)


def test_the_chosen_bucket_loses_least_for_every_size() -> None:
    buckets = plan_buckets(512 * 512, 64, 2.0)
    for width, height in np.random.default_rng(0).integers(32, 4000, (300, 2)).tolist():
        size = Size(width, height)
        loss = crop_loss(size, choose_bucket(size, buckets))
        assert loss == min(crop_loss(size, b) for b in buckets)
        assert 0 <= loss < 1


def test_crop_loss_is_the_share_of_pixels_that_fit_drops() -> None:
    assert crop_loss(Size(200, 100), Bucket(64, 64)) == pytest.approx(0.5)
    assert crop_loss(Size(300, 200), Bucket(96, 64)) == 0.0
    stripes = Image.new("RGB", (200, 100), "white")
    stripes.paste("black", (0, 0, 50, 100))
    stripes.paste("black", (150, 0, 200, 100))
    assert np.asarray(fit(stripes, Bucket(64, 64))).min() > 230  # the filter reaches a pixel over the edge


def test_fit_gives_the_bucket_exactly_for_awkward_sizes() -> None:
    for width, height in [(33, 97), (1001, 999), (64, 64), (37, 36), (2047, 700), (64, 128)]:
        for bucket in (Bucket(64, 64), Bucket(96, 48), Bucket(48, 80)):
            for place in (0.0, 0.3, 1.0):
                assert fit(Image.new("RGB", (width, height)), bucket, place).size == bucket


@pytest.mark.parametrize("size", [(400, 400), (640, 400), (400, 700)])
def test_a_circle_stays_a_circle(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    x, y = size[0] / 2, size[1] / 2
    ImageDraw.Draw(image).ellipse((x - 100, y - 100, x + 100, y + 100), fill="black")
    dark = np.asarray(fit(image, Bucket(192, 128)).convert("L")) < 128
    wide, tall = dark.any(axis=0).sum(), dark.any(axis=1).sum()
    assert abs(int(wide) - int(tall)) <= 1


def test_place_0_and_1_touch_the_edges() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste("red", (0, 0, 20, 100))
    image.paste("blue", (280, 0, 300, 100))
    left, middle, right = (np.asarray(fit(image, Bucket(100, 100), p)) for p in (0.0, 0.5, 1.0))
    assert left[50, 0].tolist() == [255, 0, 0] and left[50, -1].tolist() == [255, 255, 255]
    assert middle.min() == 255
    assert right[50, -1].tolist() == [0, 0, 255] and right[50, 0].tolist() == [255, 255, 255]
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert np.asarray(fit(upright, Bucket(100, 100), 0.0))[0, 50].tolist() == [255, 0, 0]


def test_flip_mirrors_what_was_cut_out() -> None:
    image = picture(1, (300, 100))
    plain = fit(image, Bucket(64, 64), 0.2)
    assert distance(fit(image, Bucket(64, 64), 0.2, flip=True), plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0


def test_downscaling_is_antialiased() -> None:
    checks = Image.fromarray(np.kron(np.indices((256, 256)).sum(0) % 2, np.ones((1, 1))).astype(np.uint8) * 255)
    small = np.asarray(fit(checks.convert("RGB"), Bucket(32, 32)))
    assert np.abs(small[4:-4, 4:-4].astype(int) - 127).max() <= 3


def test_to_array_is_channels_first_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (5, 3), (0, 255, 0))
    array = to_array(image)
    assert array.shape == (3, 3, 5) and array.dtype == np.float32 and array.flags.c_contiguous
    assert (array[0] == -1).all() and (array[1] == 1).all()
    back = np.round((to_array(picture(3)) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    assert distance(Image.fromarray(back), picture(3)) == 0
