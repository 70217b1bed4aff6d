"""Encode each image once, as it is cut and mirrored; what is kept is the distribution that each visit draws from."""

from collections.abc import Generator, Iterable, Mapping
from typing import NamedTuple

import torch

from finetune.data.buckets import Array, Bucket, fit, to_array
from finetune.data.decode import open_rgb
from finetune.data.example import Example
from finetune.encoding.store import Store, Stored, entry_key
from finetune.errors import DataError
from finetune.families.base import Family, Moments

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""where a random crop may lie; few, so that each is encoded once"""
CENTER = 2


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


def encode_images(
    store: Store, family: Family, wanted: Iterable[Wanted], device: torch.device
) -> Generator[int, None, Mapping[tuple[str, Crop], Moments]]:
    """(sample name, crop) -> its distribution, from the store or encoded now, one at a time, where the encoder is.

    Yields how many are done.

    Raises:
        DataError: an image is not the one that was checked, or its latents are not finite.
    """
    encoder = family.fingerprint("vae")
    found: Stored[tuple[str, Crop], Moments] = Stored(store, "image", lambda e: Moments(e["mean"], e["logvar"]))
    for done, want in enumerate(wanted, 1):
        key = entry_key(want.example.digest, want.bucket, want.crop, encoder, "float32")
        entry = store.get("image", key)
        if entry is None:
            pixels = torch.from_numpy(_pixels(want)).unsqueeze(0)
            moments = family.encode_images(pixels.to(device))
            entry = {"mean": moments.mean[0].cpu(), "logvar": moments.logvar[0].cpu()}
            if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
                raise DataError(f"{want.example.name}: the autoencoder gives numbers that are not finite", "remove it")
            store.put("image", key, entry)
        found.add((want.example.name, want.crop), key, entry)
        yield done
    return found


def _pixels(want: Wanted) -> Array:
    image = open_rgb(want.example.path, digest=want.example.digest)  # the digest is the key of what is kept
    return to_array(fit(image, want.bucket, PLACES[want.crop.place], want.crop.flip))
