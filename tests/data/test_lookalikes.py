"""Copies are found by their fingerprints, however they were made, without comparing each with each."""

import random

import pytest
from PIL import Image
from support.scenes import as_jpeg, mirrored, scene

from finetune.data.images.looks import measure_looks, unpacked_looks
from finetune.data.quality import similar
from finetune.data.quality.similar import Fingerprint, likenesses

MIRROR = 0x5555_5555_5555_5555


def fingerprint(image: Image.Image) -> Fingerprint:
    looks = unpacked_looks(measure_looks(image))
    return Fingerprint(looks.fingerprint, looks.cells)


def cut(image: Image.Image, share: float) -> Image.Image:
    edge = round(image.width * share / 2)
    return image.crop((edge, edge, image.width - edge, image.height - edge))


COPIES = {
    "recompressed": lambda image: as_jpeg(image, 40),
    "half": lambda image: image.resize((80, 80), Image.Resampling.BICUBIC),
    "mirrored": mirrored,
    "mirrored and recompressed": lambda image: as_jpeg(mirrored(image), 60),
    "brighter": lambda image: image.point(lambda v: min(255, round(v * 1.1))),
    "cut": lambda image: cut(image, 0.03),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_found(copy) -> None:
    for i in range(16):
        _, found = likenesses([fingerprint(scene(i)), fingerprint(copy(scene(i)))], 10)
        assert found is not None and found.of == 0, i
        assert found.mirrored == (copy in (COPIES["mirrored"], COPIES["mirrored and recompressed"]))


def test_other_pictures_are_no_copies() -> None:
    assert not any(likenesses([fingerprint(scene(i)) for i in range(60)], 10))


def test_the_same_shape_in_other_colours_is_no_copy() -> None:
    one = scene(1)
    red, green, blue = one.split()
    assert not any(likenesses([fingerprint(one), fingerprint(Image.merge("RGB", (blue, red, green)))], 11))


def near(bits: int, number: int, chance: random.Random) -> int:
    for place in chance.sample(range(64), number):
        bits ^= 1 << place
    return bits


@pytest.mark.parametrize("most", [0, 3, 4, 7, 8, 10, 11])
@pytest.mark.parametrize("mirror", [0, MIRROR])
def test_whatever_bits_differ_all_that_are_near_enough_are_found_and_no_others(most: int, mirror: int) -> None:
    chance, cells = random.Random(most), bytes(48)
    for _ in range(150):
        bits = chance.getrandbits(64)
        for number in (0, most, most + 1):
            pair = [Fingerprint(bits, cells), Fingerprint(near(bits, number, chance) ^ mirror, cells)]
            found = likenesses(pair, most)[1]
            assert (found is not None) == (number <= most)
            assert found is None or (found.distance == number and found.mirrored == bool(mirror))


def test_each_copy_is_like_the_best_one_and_not_by_way_of_another() -> None:
    """Of a chain in which each is near the next, the ends are not near each other."""
    cells, steps = bytes(48), [0, 0xFF, 0xFFFF, 0xFFFFFF]
    found = likenesses([Fingerprint(bits, cells) for bits in steps], 8)
    assert [like and like.of for like in found] == [None, 0, None, 2]
    apart = likenesses([Fingerprint(bits, cells) for bits in steps], 8, frozenset((1,)))
    assert [like and like.of for like in apart] == [None, 0, 1, None]


def test_what_is_compared_grows_no_faster_than_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    same_colours = similar._same_colours

    def counted(*cells) -> bool:
        nonlocal compared
        compared += 1
        return same_colours(*cells)

    monkeypatch.setattr(similar, "_same_colours", counted)
    frames = [Fingerprint(near(0xF0F0, i % 3, random.Random(i)), bytes(48)) for i in range(3000)]
    assert sum(like is None for like in likenesses(frames, 10)) == 1, "frames of a film"
    assert compared <= 2 * len(frames)
