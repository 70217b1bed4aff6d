"""Masks as they are kept: by all that their cells depend on, and each as its picture is cut."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from finetune.data.example import Example, MaskFile
from finetune.data.images.buckets import Bucket, Size
from finetune.encoding.images import STRAIGHT, Crop, Wanted
from finetune.encoding.masks import Masks, encode_masks
from finetune.encoding.store import Store
from finetune.errors import DataError

FACTS: Any = SimpleNamespace(latent_shape=lambda width, height: (4, height // 8, width // 8))
SQUARE, WIDE = Bucket(64, 64), Size(128, 64)


def mask_file(path: Path, turned: int = 1) -> MaskFile:
    """Of 128 x 64, white in its left quarter."""
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(path)
    return MaskFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), Size(128, 64), turned)


def want(mask: MaskFile, size: Size = WIDE, bucket: Bucket = SQUARE, crop: Crop = STRAIGHT,
         name: str = "a.png") -> Wanted:  # fmt: skip
    return Wanted(Example(Path(name), name, "", name, size, mask=mask), bucket, crop)


def encoded(store: Store, *wanted: Wanted) -> Mapping[tuple[str, Crop], torch.Tensor]:
    encoding = encode_masks(store, FACTS, wanted)
    while True:
        try:
            next(encoding)
        except StopIteration as done:
            return done.value


def test_a_mask_is_averaged_anew_for_whatever_its_cells_depend_on(tmp_path: Path) -> None:
    """One file as the mask of pictures that are cut, turned, mirrored and sized otherwise: none takes another's."""
    store, one = Store(tmp_path / "cache"), mask_file(tmp_path / "m.png")
    left = Crop(0, False)
    wide = want(one, bucket=Bucket(128, 64))
    whole = encoded(store, wide)["a.png", STRAIGHT]
    assert whole.shape == (8, 16) and whole[:, :4].all() and not whole[:, 4:].any()
    asked = {
        "in the middle": (want(one), 0.0),
        "at the left": (want(one, crop=left), 0.5),
        "mirrored": (want(one, crop=Crop(0, True)), 0.5),
        "of a larger picture": (want(one, Size(256, 128), Bucket(128, 64)), 0.25),
        "turned": (want(one._replace(orientation=6), Size(64, 128), Bucket(64, 128)), 0.25),
        "turned the other way": (want(one._replace(orientation=8), Size(64, 128), Bucket(64, 128)), 0.25),
    }
    found = {}
    for kind, (each, share) in asked.items():
        if share:
            found[kind] = encoded(store, each)[each.example.name, each.crop]
            assert float(found[kind].mean()) == pytest.approx(share), kind
        else:
            with pytest.raises(DataError, match="nothing of its mask is left"):
                encoded(store, each)
    assert found["at the left"][:, :4].all() and found["mirrored"][:, 4:].all()
    assert found["turned"][:4].all() and found["turned the other way"][12:].all()
    assert store.hits == 0, "no two of them are one entry"


def test_equal_masks_are_one_entry_and_pictures_without_one_count_whole(tmp_path: Path) -> None:
    store, one = Store(tmp_path / "cache"), mask_file(tmp_path / "m.png")
    wide = Bucket(128, 64)
    cells = encoded(store, want(one, bucket=wide), want(one, bucket=wide, name="b.png"))
    assert store.misses == 1
    stacked = Masks(cells, 0.0).stacked([("b.png", STRAIGHT), ("without.png", STRAIGHT)], (4, 8, 16))
    assert stacked is not None and stacked[0].mean() == 0.25 and bool((stacked[1] == 1).all())
    assert Masks({}, 0.0).stacked([("b.png", STRAIGHT)], (4, 8, 16)) is None
