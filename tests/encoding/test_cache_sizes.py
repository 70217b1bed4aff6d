"""What the cache is said to take, before anything is loaded, is what it takes."""

from pathlib import Path

import pytest
import torch
from support.bases import tiny_base
from support.photos import photos

from finetune import families
from finetune.data import dataset
from finetune.data.images.buckets import Bucket
from finetune.encoding.images import PLACES, STRAIGHT, Wanted, encode_images
from finetune.encoding.sizes import HELD_BYTES, KEY_BYTES, cache_bytes, crops_shown
from finetune.encoding.store import Store, usage
from finetune.encoding.text import encode_texts
from finetune.events import unheard
from finetune.families.base import BaseInfo, Family, Prompt

CAPTIONS = ["a sks cup", "", "a photo of a red sks cup on a table by the window, morning light"]
BUCKETS = (Bucket(64, 64), Bucket(96, 48))
CPU = torch.device("cpu")


def filled(family: Family, root: Path, data: Path) -> int:
    """Bytes on disk of two pictures in each bucket, and of the captions."""
    store, examples = Store(root), dataset.read_dataset(data, trigger="sks").examples
    unheard(encode_images(store, family, [Wanted(e, bucket, STRAIGHT) for bucket in BUCKETS for e in examples], CPU))
    for encoder in family.encoders:
        unheard(encode_texts(store, family, encoder, CAPTIONS))
    return usage(root).bytes


@pytest.mark.parametrize("variant", ["sd15", "sdxl", "sd3", "flux", "zimage", "qwen", "klein"])
def test_what_is_counted_is_what_lies_on_disk(variant: str, tmp_path: Path) -> None:
    family = families.load(str(tiny_base(tmp_path / "base", variant)))  # type: ignore[arg-type]
    data = photos(tmp_path / "photos", ((80, 64), (64, 64)))

    def tokens(caption: str) -> int:
        with torch.no_grad():
            return family.encode(family.encoders[0], [Prompt(caption)]).tokens.shape[1]

    found = cache_bytes(family.facts, dict.fromkeys(BUCKETS, 2), CAPTIONS, 4, len(family.encoders), tokens)
    assert found.disk == pytest.approx(filled(family, tmp_path / "cache", data), rel=0.005)


def test_a_base_in_half_precision_takes_half_for_captions(tmp_path: Path) -> None:
    path = str(tiny_base(tmp_path / "base", "sdxl"))
    data = photos(tmp_path / "photos", ((80, 64), (64, 64)))
    family = families.load(path, torch.bfloat16)
    found = cache_bytes(family.facts, dict.fromkeys(BUCKETS, 2), CAPTIONS, 2, 2)
    assert found.disk == pytest.approx(filled(family, tmp_path / "cache", data), rel=0.005)
    whole = cache_bytes(family.facts, dict.fromkeys(BUCKETS, 2), CAPTIONS, 4, 2)
    assert whole.images == found.images and 1.8 < whole.texts / found.texts < 2


def test_published_bases_take_what_is_known_of_them() -> None:
    """SDXL at 1024 px: 4 x 128 x 128 numbers twice; FLUX reads 512 tokens of 4096, and a pooled state."""
    sdxl = facts(text=(77, 2048, 1280))
    flux = facts(text=(512, 4096, 768), channels=16)
    large = {Bucket(1024, 1024): 1.0}
    assert cache_bytes(sdxl, large, [""], 4, 2).images == pytest.approx(2**19, rel=0.01)
    assert cache_bytes(sdxl, large, [""], 4, 2).texts == pytest.approx(4 * (77 * 2048 + 1280), rel=0.01)
    assert cache_bytes(flux, large, [""], 2, 2) == pytest.approx((2**21, 2**22, 2**21 + 2**22), rel=0.01)


def test_a_video_has_its_frames() -> None:
    one, many = (cache_bytes(facts(frames=n), {Bucket(512, 512): 1.0}, [], 4).images for n in (1, 8))
    assert many == pytest.approx(8 * one, rel=0.01)


def test_memory_is_of_keys_where_entries_are_many() -> None:
    """A hundred thousand more pictures add their keys alone."""
    few, many = (cache_bytes(facts(), {Bucket(64, 64): n}, [str(i) for i in range(n)], 4) for n in (2_000, 102_000))
    assert many.disk == pytest.approx(51 * few.disk, rel=0.01)
    assert many.memory - few.memory == 2 * 100_000 * KEY_BYTES
    large = cache_bytes(facts(), {Bucket(1024, 1024): 10_000}, [], 4)
    assert large.memory == HELD_BYTES + 10_000 * KEY_BYTES < large.disk / 10


def test_captions_of_any_length_take_what_they_have() -> None:
    masked = facts(text=(128, 2560, 0), masked=True, max_tokens=512)
    short, long, cut = (cache_bytes(masked, {}, [words], 4).texts for words in ("a cup", "a cup " * 40, "a cup " * 999))
    assert short < long / 5 and cut == pytest.approx(512 * (2560 * 4 + 1), rel=0.01)


@pytest.mark.parametrize(
    "random, flip, visits, expected",
    [(False, False, 50, 1), (True, True, 10_000, 10), (False, True, 1, 1.5), (True, False, 1, 1.8)],
)
def test_crops_that_are_shown_are_counted_by_chance(random: bool, flip: bool, visits: int, expected: float) -> None:
    """The straight one is always there, as pictures are judged by it."""
    assert crops_shown(random, flip, visits) == pytest.approx(expected)
    assert crops_shown(random, flip, 0) == 1 and len(PLACES) == 5


def facts(**own: object) -> BaseInfo:
    known = BaseInfo("sdxl", "sdxl", "epsilon", False, 1024, 64, 77, True, "")
    return known._replace(**own)  # type: ignore[arg-type]
