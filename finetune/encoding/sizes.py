"""How many bytes the cache will take, on disk and in memory: known from shapes alone, before anything is loaded.

Entries are as large as their tensors and a header of some hundred bytes, which counts where pictures are tiny.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from finetune.data.images.buckets import Bucket
from finetune.families.base import BaseInfo

ROW_BYTES, DIGEST_BYTES = 48, 32
"""beside an entry: its row in the index, and its checksum"""
KEY_BYTES = 160
"""in memory, of an entry that is on disk: its name, and where it lies"""
HELD_BYTES, HELD_ENTRIES = 256 * 2**20, 1024
"""what is held in memory of encoded images, and of each encoder's captions, at most; the rest is read when it is due"""


class CacheBytes(NamedTuple):
    """What a dataset's entries take."""

    images: int
    """on disk"""
    texts: int
    """on disk"""
    memory: int
    """held at once, of both"""

    @property
    def disk(self) -> int:
        return self.images + self.texts


def crops_shown(random: bool, flip: bool, visits: float, places: int = 5) -> float:
    """How many crops of a picture are shown, and so encoded, in so many visits: expected, the straight one always."""
    ways = (places if random else 1) * (2 if flip else 1)
    return 1 + (ways - 1) * (1 - float((1 - 1 / ways) ** visits))


def image_bytes(facts: BaseInfo, bucket: Bucket) -> int:
    """One picture, cut in one way: mean and log-variance in float32."""
    shape = facts.latent_shape(*bucket)
    numbers = math.prod(shape)
    return 8 * numbers + _overhead({"logvar": shape, "mean": shape}, 4)


def mask_bytes(facts: BaseInfo, bucket: Bucket) -> int:
    """One picture's mask, cut in one way: a number in float32 for each cell of its latents."""
    shape = facts.latent_shape(*bucket)[-2:]
    return 4 * math.prod(shape) + _overhead({"mask": shape}, 4)


def with_masks(cache: CacheBytes, facts: BaseInfo, masked: Mapping[Bucket, float]) -> CacheBytes:
    """The same with the masks of pictures. masked: bucket -> encoded pictures that have one."""
    size, many = sum(mask_bytes(facts, bucket) * many for bucket, many in masked.items()), sum(masked.values())
    return cache._replace(
        images=cache.images + round(size), memory=cache.memory + (round(_held(size, many, 1)) if many else 0)
    )


def text_bytes(facts: BaseInfo, tokens: int, itemsize: int, encoders: int = 1) -> int:
    """One caption, by all text encoders of a base.

    tokens: its own, where captions are of any length. itemsize: bytes of a number in the run's precision.
    """
    most, width, pooled = facts.text
    if facts.masked:
        n = min(tokens, facts.max_tokens)
        return n * (width * itemsize + 1) + _overhead({"mask": (n,), "tokens": (n, width)}, itemsize)
    numbers = facts.encoded or most * width + pooled
    each = {"tokens": (most, width)} | ({"pooled": (pooled,)} if pooled else {})
    return numbers * itemsize + encoders * _overhead(each, itemsize)


def likely_tokens(caption: str) -> int:
    """Of a caption in a language model's form, where no tokenizer is asked: three tokens to two words of English."""
    return 12 + 3 * len(caption.split()) // 2


def cache_bytes(
    facts: BaseInfo, images: Mapping[Bucket, float], captions: Collection[str], itemsize: int, encoders: int = 1,
    tokens: Callable[[str], int] = likely_tokens,
) -> CacheBytes:  # fmt: skip
    """What the entries of a run take.

    images: bucket -> encoded pictures, each crop and each control picture counted (`crops_shown`). captions: different
    ones, those of samples included; none when the text encoders are trained. itemsize: bytes of a number in the run's
    precision. encoders: text encoders that are not trained. tokens: of a caption, where they are of any length.
    """
    pictures = sum(image_bytes(facts, bucket) * many for bucket, many in images.items())
    if facts.masked:
        texts = sum(text_bytes(facts, tokens(caption), itemsize) for caption in captions)
    else:
        texts = len(captions) * text_bytes(facts, 0, itemsize, encoders)
    memory = _held(pictures, sum(images.values()), 1) + _held(texts, len(captions) * encoders, encoders)
    return CacheBytes(round(pictures), texts, round(memory))


def _held(size: float, entries: float, kinds: int) -> float:
    share = min(1.0, HELD_ENTRIES * kinds / entries) if entries else 0.0
    return min(size * share, HELD_BYTES * kinds) + KEY_BYTES * entries


def _overhead(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> int:
    """Bytes of an entry that are not numbers: the header of the safetensors format, checksum and row."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    written = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-written // 8) * 8 + DIGEST_BYTES + ROW_BYTES
