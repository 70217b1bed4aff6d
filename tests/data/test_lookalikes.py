"""Copies are found by their fingerprints, however they were made, without comparing each with each."""

import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from PIL import Image
from support.scenes import as_jpeg, mirrored, scene

from finetune.data.images.looks import looks_table, measure_looks
from finetune.data.quality import similar
from finetune.data.quality.similar import NearCopy, likenesses

MIRROR = 0x5555_5555_5555_5555


def alike(images: Iterable[Image.Image], most: int = 10) -> list[NearCopy | None]:
    table = looks_table([measure_looks(image) for image in images])
    return likenesses(table["fingerprint"], table["cells"], most)


def near_bits(bits: Sequence[int], most: int, apart: frozenset[int] = frozenset()) -> list[NearCopy | None]:
    """Of fingerprints of pictures of one colour."""
    return likenesses(np.array(bits, np.uint64), np.zeros((len(bits), 4, 4, 3), np.uint8), most, apart)


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
        _, found = alike([scene(i), copy(scene(i))])
        assert found is not None and found.of == 0, i
        assert found.mirrored == (copy in (COPIES["mirrored"], COPIES["mirrored and recompressed"]))


def test_other_pictures_are_no_copies() -> None:
    assert not any(alike(map(scene, range(60))))


def test_the_same_shape_in_other_colours_is_no_copy() -> None:
    one = scene(1)
    red, green, blue = one.split()
    assert not any(alike([one, Image.merge("RGB", (blue, red, green))], 11))


def near(bits: int, number: int, chance: random.Random) -> int:
    for place in chance.sample(range(64), number):
        bits ^= 1 << place
    return bits


@pytest.fixture(params=[similar._BLOCK, 1, 3], ids="blocks of {}".format)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pictures are compared within a block, or across blocks."""
    monkeypatch.setattr(similar, "_BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("most", [0, 3, 4, 7, 8, 10, 11])
@pytest.mark.parametrize("mirror", [0, MIRROR])
def test_whatever_bits_differ_all_that_are_near_enough_are_found_and_no_others(
    most: int, mirror: int, block: int
) -> None:
    chance = random.Random(most)
    for _ in range(30):
        bits = chance.getrandbits(64)
        for number in (0, most, most + 1):
            found = near_bits([bits, near(bits, number, chance) ^ mirror], most)[1]
            assert (found is not None) == (number <= most)
            assert found is None or found == (0, number, bool(mirror))


@pytest.mark.usefixtures("block")
def test_each_copy_is_like_the_best_one_and_not_by_way_of_another() -> None:
    """Of a chain in which each is near the next, the ends are not near each other."""
    steps = [0, 0xFF, 0xFFFF, 0xFFFFFF]
    assert [like and like.of for like in near_bits(steps, 8)] == [None, 0, None, 2]
    assert [like and like.of for like in near_bits(steps, 8, frozenset((1,)))] == [None, 0, 1, None]


@pytest.mark.usefixtures("block")
def test_the_nearest_counts_then_what_is_not_mirrored_then_the_first() -> None:
    assert near_bits([0b1111, 0b1, 0], 2, frozenset((0, 1)))[2] == (1, 1, False)
    assert near_bits([0b11, 0b11, 0], 2, frozenset((0, 1)))[2] == (0, 2, False)
    assert near_bits([0b11 ^ MIRROR, 0b110, 0], 2, frozenset((0, 1)))[2] == (1, 2, False)
    assert near_bits([0b1 ^ MIRROR, 0b110, 0], 2, frozenset((0, 1)))[2] == (0, 1, True)


@pytest.mark.usefixtures("block")
def test_a_mirrored_copy_has_the_colours_of_the_other_side() -> None:
    cells = np.zeros((2, 4, 4, 3), np.uint8)
    cells[0, :, 0], cells[1, :, 3] = 200, 200
    assert likenesses(np.array([7, 7 ^ MIRROR], np.uint64), cells, 4)[1] == (0, 0, True)
    assert likenesses(np.array([7, 7], np.uint64), cells, 4)[1] is None


def test_many_at_once_are_compared_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    seeds = [chance.getrandbits(64) for _ in range(20)]
    bits = [near(chance.choice(seeds), chance.randrange(12), chance) ^ chance.choice((0, MIRROR)) for _ in range(300)]
    found = near_bits(bits, 10)
    assert 200 < sum(like is not None for like in found) < 300
    for blocks, at_once in ((7, 1), (7, 40), (64, 5), (299, 1 << 18)):
        monkeypatch.setattr(similar, "_BLOCK", blocks)
        monkeypatch.setattr(similar, "_AT_ONCE", at_once)
        assert near_bits(bits, 10) == found


@pytest.mark.parametrize("number", [0, 1])
def test_few_pictures_are_like_nothing(number: int) -> None:
    assert near_bits([5] * number, 10) == [None] * number


def test_what_is_compared_grows_no_faster_than_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    same_colours = similar._same_colours

    def counted(cells, numbers, entries):
        nonlocal compared
        compared += len(entries)
        return same_colours(cells, numbers, entries)

    monkeypatch.setattr(similar, "_same_colours", counted)
    frames = [near(0xF0F0, i % 3, random.Random(i)) for i in range(3000)]
    assert sum(like is None for like in near_bits(frames, 10)) == 1, "frames of a film"
    assert compared <= 4 * len(frames), "in each of their quarters"
