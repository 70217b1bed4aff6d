"""Masks as training reads them: the share of each latent cell that is learnt, averaged once for each crop and kept."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.data.images.workers import in_batches
from finetune.data.masks import mask_cells, open_mask
from finetune.encoding.images import LARGE_PX, PLACES, ByCrop, Crop, Wanted
from finetune.encoding.missing import Missing
from finetune.encoding.store import Store, entry_key
from finetune.encoding.stored import Stored
from finetune.errors import DataError
from finetune.families.base import BaseInfo

MaskCells = Mapping[tuple[str, Crop], Tensor]
LEAST_CELLS = 0.25
"""of latents, that a mask must cover: less is nothing to learn from"""


class Masks(NamedTuple):
    """The masks of a run, where some of its images have one."""

    cells: MaskCells
    """(sample name, crop) -> (h, w) in [0, 1], float32"""
    outside: float
    """the weight of what is outside, in [0, 1]"""

    def stacked(self, shown: Sequence[tuple[str, Crop]], shape: Sequence[int]) -> Tensor | None:
        """(b, h, w), of images without a mask all ones; None where no image of the run has one. shape: of latents."""
        if not self.cells:
            return None
        whole = torch.ones(*shape[-2:])
        return torch.stack([self.cells[one] if one in self.cells else whole for one in shown])


NO_MASKS = Masks({}, 0.0)


def encode_masks(store: Store, facts: BaseInfo, wanted: Iterable[Wanted]) -> Generator[int, None, MaskCells]:
    """Those of the images that have one, from the store or averaged now. Yields how many are done.

    Raises:
        DataError: a mask is not the one that was checked, or a crop leaves nothing of it.
        RunError: the cache cannot be written.
    """
    wants = [want for want in wanted if want.example.mask]
    entries = store.entries("mask", [_key(facts, want) for want in wants])
    found: Stored[tuple[str, Crop], Tensor] = Stored(entries, ByCrop(wants, entries.numbers), lambda e: e["mask"])
    missing, large = Missing(store, "mask", found, wants), Lock()
    with missing.kept():
        yield from missing.found_before()
        batches = missing.batches([one] for one in list(missing.todo.items()))
        with closing(in_batches(batches, lambda one: _averaged(facts, one[1], large))) as ahead:
            for batch in ahead:
                for (number, _), cells in batch:
                    missing.put(number, {"mask": cells()})
                yield missing.done
    return found


def _averaged(facts: BaseInfo, want: Wanted, large: Lock) -> Tensor:
    example, crop = want.example, want.crop
    assert example.mask is not None
    with large if example.mask.size.width * example.mask.size.height > LARGE_PX else nullcontext():
        grey = open_mask(example.mask)
        cells = mask_cells(grey, example.size, want.bucket, PLACES[crop.place], crop.flip, _shape(facts, want))
    if float(cells.sum()) < LEAST_CELLS:
        raise DataError(
            f"{example.name}: nothing of its mask is left where it is cropped to {want.bucket.width} x "
            f"{want.bucket.height} px",
            'data.crop = "center", a larger data.max_aspect or data.resolution; or crop the image itself',
        )
    return torch.from_numpy(cells)


def _key(facts: BaseInfo, want: Wanted) -> bytes:
    mask = want.example.mask
    assert mask is not None
    return entry_key(
        "mask", mask.digest, mask.orientation, want.example.size, want.bucket, want.crop, _shape(facts, want)
    )


def _shape(facts: BaseInfo, want: Wanted) -> tuple[int, int]:
    height, width = facts.latent_shape(*want.bucket)[-2:]
    return height, width
