"""Encode each image once, as it is cut and mirrored; what is kept is the distribution that each visit draws from."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.data.example import Example
from finetune.data.images.buckets import Bucket, fit, to_array
from finetune.data.images.decode import open_rgb
from finetune.data.images.workers import in_batches
from finetune.encoding.missing import Fewer, Missing
from finetune.encoding.store import KEYS, Store
from finetune.encoding.stored import Stored
from finetune.errors import DataError
from finetune.families.base import Family, Moments

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""where a random crop may lie; few, so that each is encoded once"""
CENTER = 2
ENCODED_PX = {"cpu": 0, "cuda": 16 * 512 * 512}
"""px that are encoded at once; on a CPU one picture, which is as fast (docs/log.md) and has always the same bits"""
LARGE_PX = 40_000_000
"""above which one picture is decoded at a time: the largest take 2 GB"""


class Crop(NamedTuple):
    """One way of showing an image: where the window lies (an index of PLACES), and whether mirrored."""

    place: int
    flip: bool


STRAIGHT = Crop(CENTER, False)
"""as images are looked at when training is judged"""


class Wanted(NamedTuple):
    example: Example
    bucket: Bucket
    crop: Crop


Numbered = tuple[int, Wanted]


def encode_images(
    store: Store, family: Family, wanted: Iterable[Wanted], device: torch.device
) -> Generator[int, None, Mapping[tuple[str, Crop], Moments]]:
    """(sample name, crop) -> its distribution, from the store or encoded now, where the encoder is.

    Yields how many are done.

    Raises:
        DataError: an image is not the one that was checked, or its latents are not finite.
        RunError: the cache cannot be written.
    """
    wants, key = list(wanted), ImageKeys(family.fingerprint("vae"))
    entries = store.entries("image", [key(want) for want in wants])
    numbers = ByCrop(wants, entries.numbers)
    found: Stored[tuple[str, Crop], Moments] = Stored(entries, numbers, lambda e: Moments(e["mean"], e["logvar"]))
    missing = Missing(store, "image", found, wants)
    large = Lock()
    encode = Fewer[Tensor, dict[str, Tensor]](lambda pixels: _encoded(family, pixels, device))
    with missing.kept():
        yield from missing.found_before()
        batches = _batched(missing.todo.items(), ENCODED_PX.get(device.type, 0))
        with closing(in_batches(missing.batches(batches), lambda one: _pixels(one[1], large))) as ahead:
            for batch in ahead:
                for number, entry in _finite(batch, encode):
                    missing.put(number, entry)
                yield missing.done
    return found


def _batched(wanted: Iterable[Numbered], px: int) -> Iterator[list[Numbered]]:
    """Of one bucket each, of so many px, or of one picture; in order, as far as that lets them."""
    waiting: dict[Bucket, list[Numbered]] = {}
    for one in wanted:
        bucket = one[1].bucket
        alike = waiting.setdefault(bucket, [])
        alike.append(one)
        if (len(alike) + 1) * bucket.width * bucket.height > px:
            yield waiting.pop(bucket)
    yield from waiting.values()


def _pixels(want: Wanted, large: Lock) -> Tensor:
    """(3, H, W) in [-1, 1]. Raises DataError: the image is not the one that was checked."""
    size = want.example.size
    with large if size.width * size.height > LARGE_PX else nullcontext():
        image = open_rgb(want.example.path, digest=want.example.digest)  # the digest is the key of what is kept
        return torch.from_numpy(to_array(fit(image, want.bucket, PLACES[want.crop.place], want.crop.flip)))


def _finite(
    batch: Sequence[tuple[Numbered, Callable[[], Tensor]]], encode: Fewer[Tensor, dict[str, Tensor]]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(number, entry) of each, and of those before a picture that cannot be used. Raises DataError: for that one."""
    pixels, fault = list[Tensor](), None
    for _, decoded in batch:
        try:
            pixels.append(decoded())
        except DataError as e:
            fault = e
            break
    for ((number, want), _), entry in zip(batch, encode(pixels), strict=False):
        if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
            raise DataError(f"{want.example.name}: the autoencoder gives numbers that are not finite", "remove it")
        yield number, entry
    if fault:
        raise fault


def _encoded(family: Family, pixels: Sequence[Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    moments = family.encode_images(torch.stack(list(pixels)).to(device))
    whole = {"mean": moments.mean, "logvar": moments.logvar}
    return [{name: of[i].to("cpu", copy=True) for name, of in whole.items()} for i in range(len(pixels))]


class ImageKeys:
    """`entry_key(digest, bucket, crop, encoder, "float32")` of each, in a microsecond: most of it is the same text."""

    def __init__(self, encoder: str) -> None:
        self.encoder = encoder
        self._after: dict[tuple[Bucket, Crop], str] = {}

    def __call__(self, want: Wanted) -> bytes:
        after = self._after.get((want.bucket, want.crop))
        if after is None:
            after = "\0".join(map(repr, (want.bucket, want.crop, self.encoder, "float32")))
            self._after[want.bucket, want.crop] = after
        return hashlib.sha256(f"{KEYS!r}\0{want.example.digest!r}\0{after}".encode()).digest()


class ByCrop(Mapping[tuple[str, Crop], int]):
    """(name, crop) -> number, as a table for each crop: no pair is held."""

    def __init__(self, wants: Sequence[Wanted], numbers: Sequence[int]) -> None:
        self._tables: dict[Crop, dict[str, int]] = {}
        for want, number in zip(wants, numbers, strict=True):
            self._tables.setdefault(want.crop, {})[want.example.name] = number

    def __getitem__(self, name: tuple[str, Crop]) -> int:
        return self._tables.get(name[1], {})[name[0]]

    def __iter__(self) -> Iterator[tuple[str, Crop]]:
        return ((name, crop) for crop, table in self._tables.items() for name in table)

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))
