"""How a picture looks is measured while it is decoded: detail, borders, ground, tint, a fingerprint."""

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from support.scenes import as_jpeg, barred, mirrored, scene

from finetune.data.images.buckets import Size
from finetune.data.images.looks import LOOKS, Looks, measure_looks, unpacked_looks, without_borders

SIXTEEN = range(16)


def looks(image: Image.Image) -> Looks:
    return unpacked_looks(measure_looks(image))


def enlarged(image: Image.Image, by: float) -> Image.Image:
    small = image.resize((round(image.width / by), round(image.height / by)), Image.Resampling.LANCZOS)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def tinted(image: Image.Image, red: float, green: float, blue: float) -> Image.Image:
    return Image.merge(
        "RGB",
        [
            c.point(lambda v, k=k: min(255, round(v * k)))
            for c, k in zip(image.split(), (red, green, blue), strict=True)
        ],
    )


def test_a_picture_takes_eighty_bytes_at_most() -> None:
    assert len(measure_looks(scene(1))) == LOOKS.size <= 80


@pytest.mark.parametrize("px", [64, 160, 700])
def test_sharp_pictures_have_all_the_detail_of_their_size(px: int) -> None:
    assert max(looks(as_jpeg(scene(i, px), 75)).detail for i in SIXTEEN) < 1.6


@pytest.mark.parametrize("by, least, most", [(3, 1.8, 4.5), (4, 2.4, 6.5), (8, 4.5, 12)])
def test_an_enlarged_picture_has_the_detail_of_the_one_that_it_was(by: float, least: float, most: float) -> None:
    found = [looks(enlarged(scene(i, 400), by)).detail for i in SIXTEEN]
    assert least < min(found) and max(found) < most, found


@pytest.mark.parametrize("px", [160, 700])
def test_the_more_a_picture_is_blurred_the_less_detail_it_has(px: int) -> None:
    for i in SIXTEEN:
        of = [looks(as_jpeg(scene(i, px).filter(ImageFilter.GaussianBlur(r)), 85)).detail for r in (0, 2, 5)]
        assert of[0] < 1.6 and of[1] > 2.5 and of[2] > 1.4 * of[1], (i, of)


def test_the_detail_of_a_huge_picture_counts_what_it_was_shrunk_by() -> None:
    assert looks(scene(1, 4100)).detail == pytest.approx(3, abs=0.6), "nothing is trained at more than 2048 px"


@pytest.mark.parametrize("image", [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (1, 1)), scene(1, 9)])
def test_plain_and_tiny_pictures_have_no_faults(image: Image.Image) -> None:
    found = looks(image)
    assert found.detail == 1 and found.borders == (0, 0, 0, 0)


# --- borders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["black", "white", "#777777"])
@pytest.mark.parametrize("quality", [0, 85])
def test_bars_are_found_to_the_px_and_what_is_between_them_looks_as_without(colour: str, quality: int) -> None:
    for i in range(6):
        image = scene(i)
        within = barred(image, 24, colour)
        within = as_jpeg(within, quality) if quality else within
        found = looks(within)
        assert found.borders == (0, 24, 0, 24), i
        assert without_borders(Size(*within.size), found) == (0, 24, 160, 184)
        assert (found.fingerprint ^ looks(image).fingerprint).bit_count() <= 10


def test_bars_at_the_sides_and_frames_are_found() -> None:
    turned = barred(scene(3), 20).transpose(Image.Transpose.ROTATE_90)
    assert looks(turned).borders == (20, 0, 20, 0)
    assert looks(ImageOps.expand(scene(3), 12, "white")).borders == (12, 12, 12, 12)
    large = ImageOps.expand(scene(3, 1500), 37, "black")
    assert looks(large).borders == (37, 37, 37, 37)


def bottle() -> Image.Image:
    image = Image.new("RGB", (160, 160), "white")
    ImageDraw.Draw(image).rectangle((60, 20, 100, 140), fill="green")
    return image


def cube() -> Image.Image:
    """A square thing from the front."""
    image = Image.new("RGB", (160, 160), "white")
    ImageDraw.Draw(image).rectangle((35, 35, 125, 125), fill="navy")
    return image


def floor() -> Image.Image:
    """A plain wall, a plain floor of another colour."""
    image = Image.new("RGB", (160, 160), "ivory")
    ImageDraw.Draw(image).rectangle((0, 110, 160, 160), fill="peru")
    ImageDraw.Draw(image).ellipse((50, 60, 110, 130), fill="teal")
    return image


@pytest.mark.parametrize("make", [bottle, cube, floor, lambda: Image.new("RGB", (80, 80), "white")])
def test_a_thing_on_a_plain_ground_has_no_border(make) -> None:
    assert looks(make()).borders == (0, 0, 0, 0)


def test_a_border_on_one_side_only_is_none() -> None:
    image = scene(2)
    image.paste("black", (0, 0, 160, 20))
    assert looks(image).borders == (0, 0, 0, 0)


# --- ground, tint ---------------------------------------------------------------------------------------------------


def test_the_ground_is_the_usual_colour_along_the_edges() -> None:
    found = looks(as_jpeg(scene(4, ground="#ffcc88"), 85))
    assert np.abs(np.subtract(found.ground, (255, 204, 136))).max() <= 3 and found.flatness > 0.9
    assert looks(scene(4)).flatness < 0.75


def greys(seed: int) -> Image.Image:
    """A scene of faint colours."""
    image = scene(seed)
    return Image.blend(image, image.convert("L").convert("RGB"), 0.85)


@pytest.mark.parametrize("light", [(1, 0.6, 0.3), (0.3, 0.7, 1), (0.5, 1, 0.5)])
def test_light_of_a_colour_tints_even_greys(light: tuple[float, float, float]) -> None:
    assert max(looks(greys(i)).cast for i in SIXTEEN) < 0.25
    assert min(looks(tinted(greys(i), *light)).cast for i in SIXTEEN) > 0.3


def test_a_plain_coloured_ground_is_no_tint() -> None:
    assert looks(scene(1, ground="orange")).cast == 0


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_what_is_seen_not_of_the_file() -> None:
    for i in SIXTEEN:
        image, own = scene(i), looks(scene(i)).fingerprint
        for same in (as_jpeg(image, 40), image.resize((80, 80)), image.resize((500, 500))):
            assert (looks(same).fingerprint ^ own).bit_count() <= 6
        assert (looks(mirrored(image)).fingerprint ^ own).bit_count() > 10


def test_the_fingerprint_is_that_of_imagehash() -> None:
    """The library that others compare with."""
    plain = [Image.new("RGB", (64, 48), colour) for colour in ("black", "white", "#3cb4aa")]
    ramps = [Image.linear_gradient("L").resize((64, 64)).convert("RGB"), Image.radial_gradient("L").convert("RGB")]
    for image in (
        *map(scene, SIXTEEN),
        *(scene(i, ground="white") for i in range(4)),
        bottle(),
        cube(),
        *ramps,
        *plain,
    ):
        square = image.convert("L")
        if by := min(image.size) // 64:
            square = image.reduce(by).convert("L")
        same = imagehash.phash(square.resize((32, 32), Image.Resampling.BOX))
        assert f"{looks(image).fingerprint:016x}" == str(same)
