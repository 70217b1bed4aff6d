"""Masks: grey pictures beside images, of which white is learnt and black is not. Looked at, and averaged to latents.

Shape legend: H, W pixels of the mask; h, w cells of latents. A mask has the size of its upright image, or that scaled.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageStat

from finetune.data import examine
from finetune.data.example import MaskFile
from finetune.data.folder import Rejected, Rules, Tree
from finetune.data.images import decode, workers
from finetune.data.images.buckets import Bucket, Size, window
from finetune.data.images.decode import ImageInfo
from finetune.data.images.diagnose import Unusable
from finetune.data.record import Seen
from finetune.data.text.captions import CaptionNote
from finetune.events import Event

COLOUR_OFF = 24
"""of 255, by which channels of a grey picture may differ: JPEG keeps colour coarsely"""
BLACK, WHITE_FROM = 16, 239
"""of 255: a mask that is nowhere lighter is empty, one that is nowhere darker is whole"""
SCALED = "mask scaled to the size of its picture"
TURNED = "mask rotated with its picture (EXIF)"
WHOLE = "mask is white everywhere: the whole picture is learnt, as without a mask"
LITTLE, NEARLY_ALL = 0.01, 0.95
"""shares of a picture that a mask covers, below and above which there is a remark"""
COVERS_LITTLE = f"mask covers less than {LITTLE:.0%} of the picture: crop it closer, as little is learnt from it"
COVERS_MOST = f"mask covers more than {NEARLY_ALL:.0%} of the picture: nearly all is learnt, as without a mask"


class Looked(NamedTuple):
    """The masks of a folder that can be used, and what is wrong with, or worth knowing of, the others."""

    masks: dict[str, MaskFile]
    """image -> its mask"""
    notes: list[CaptionNote]
    problems: list[str]


def look_at_masks(
    root: Path, masks: Mapping[str, str], pictures: Mapping[str, Seen], tree: Tree, rules: Rules
) -> Generator[Event, None, Looked]:
    """Looks at each mask, in full where the rules decode. masks: image -> the name of its mask."""
    found = Looked({}, [], [])
    if not masks:
        return found
    names = list(dict.fromkeys(masks.values()))
    known = yield from examine.seen_files(root, names, tree, rules._replace(decode=False))
    contents = _contents(root, names, tree) if rules.decode else {}
    for image, name in masks.items():
        seen = known[name]
        if isinstance(seen, Rejected):
            found.problems.append(f"{name}, the mask of {image}: {seen.reason}: {seen.detail}")
            continue
        content = contents.get(name, _SOUND)
        if content.fault:
            found.problems.append(f"{name}, the mask of {image}, {content.fault}")
            continue
        _fit(root, image, name, seen.digest, seen.info, pictures[image].info, found)
        if content.note:
            found.notes.append(CaptionNote(image, content.note))
    return found


def _fit(
    root: Path, image: str, name: str, digest: str, mask: ImageInfo, picture: ImageInfo, found: Looked
) -> None:  # fmt: skip
    """The mask as it lies over its image, or a problem."""
    turned, fault = _turn(name, image, mask, picture)
    if fault:
        found.problems.append(fault)
        return
    found.masks[image] = MaskFile(root / name, digest, mask.size, turned)
    if turned != 1:
        found.notes.append(CaptionNote(image, TURNED))
    if mask.size not in (picture.size, Size(*reversed(picture.size))):
        found.notes.append(CaptionNote(image, SCALED))


def _turn(name: str, image: str, mask: ImageInfo, picture: ImageInfo) -> tuple[int, str]:
    """(the orientation to apply to the mask, what is wrong)."""
    fits, lying = _alike(mask.size, picture.size), picture.orientation >= 5
    fits_before = _alike(mask.size, Size(*reversed(picture.size))) if lying else fits
    if mask.orientation != 1 or picture.orientation == 1:
        fits_before = False
    if fits and fits_before:
        return 1, (
            f"{name} fits {image} both before and after the EXIF rotation (orientation {picture.orientation}); "
            f"save {image} upright, and draw the mask on that"
        )
    if fits or fits_before:
        return (1 if fits else picture.orientation), ""
    shown = f"{mask.size.width} x {mask.size.height} px, but {image} has {picture.size.width} x {picture.size.height}"
    return 1, f"the mask {name} has {shown}: the shapes differ; draw the mask on the whole picture"


def _alike(mask: Size, picture: Size) -> bool:
    """Whether it is the picture's size scaled, a pixel of either being as much as rounding takes."""
    across, down = mask.width * picture.height, mask.height * picture.width
    return abs(across - down) <= max(min(picture), min(mask))


class _Content(NamedTuple):
    """What is wrong with the pixels of a mask, or worth knowing of them."""

    fault: str = ""
    note: str = ""


_SOUND = _Content()
_EMPTY = "is black everywhere, so nothing would be learnt; draw white where the product is, or remove it"


def _contents(root: Path, names: list[str], tree: Tree) -> dict[str, _Content]:
    look = partial(_content, root)
    with closing(workers.in_order(look, names, tree.bytes_of, workers.worker_count())) as found:
        return dict(zip(names, found, strict=True))


def _content(root: Path, name: str) -> _Content:
    path = root / name
    try:
        data = decode.contents(path)
        if decode.inspect_bytes(path, data).alpha:
            return _Content("is transparent in parts; save it without transparency, white where the picture is learnt")
        image = decode.decoded(path, data)
    except Unusable as e:
        return _Content(f"cannot be used: {e.reason}: {e.detail}")
    if _colour(image) > COLOUR_OFF:
        return _Content("is in colour; save it in greyscale: white is learnt, black is not")
    grey = image.convert("L")
    fault, share = fault_of(grey), covered_share(grey)
    if fault == "empty":
        return _Content(_EMPTY)
    return _Content(
        note=WHOLE if fault else COVERS_LITTLE if share < LITTLE else COVERS_MOST if share > NEARLY_ALL else ""
    )


def size_of(image: Path) -> Size:
    """Of an image, upright. Raises Unusable."""
    return decode.read_info(image, decode=False).size


def read_grey(path: Path, size: Size) -> Image.Image:
    """A mask file for an image of that size, in mode L and that size.

    Raises:
        Unusable: it is no mask for it; says why.
    """
    fault = _content(path.parent, path.name).fault
    if fault and fault != _EMPTY:
        raise Unusable(path, "not an image", fault)
    grey = decode.open_rgb(path).convert("L")
    if not _alike(Size(grey.width, grey.height), size):
        raise Unusable(
            path, "not an image", f"has {grey.width} x {grey.height} px, which is not the shape of its picture"
        )
    return grey


def is_grey(path: Path) -> bool:
    """Whether a file may be a mask, or cannot be told by its pixels."""
    try:
        return _colour(decode.open_rgb(path)) <= COLOUR_OFF
    except Unusable:
        return True


def _colour(image: Image.Image) -> int:
    """How far the channels of an RGB picture differ, at most."""
    red, green, blue = image.split()
    return max(_extremes(ImageChops.difference(green, other))[1] for other in (red, blue))


def _extremes(grey: Image.Image) -> tuple[int, int]:
    least, most = grey.getextrema()
    assert isinstance(least, int) and isinstance(most, int)
    return least, most


def covered_share(grey: Image.Image) -> float:
    """The share of a picture that its mask in mode L covers, in [0, 1]."""
    return ImageStat.Stat(grey).mean[0] / 255


def fault_of(grey: Image.Image) -> str:
    """Why a mask in mode L is none, in a word; empty when it is one."""
    least, most = _extremes(grey)
    return "empty" if most <= BLACK else "whole" if least >= WHITE_FROM else ""


def open_mask(mask: MaskFile) -> Image.Image:
    """In mode L, as it lies over the upright image.

    Raises:
        Unusable: it is not the file that was looked at before.
    """
    return decode.upright(decode.open_rgb(mask.path, digest=mask.digest).convert("L"), mask.orientation)


def mask_cells(
    grey: Image.Image, size: Size, bucket: Bucket, place: float, flip: bool, shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """(h, w) in [0, 1]: the mean of the mask over each cell of the latents, where its image of that size is cut as
    `buckets.fit` cuts it. Every pixel counts by the area that it shares with a cell."""
    left, top, right, bottom = window(size, bucket, place)
    across, down = grey.width / size.width, grey.height / size.height
    narrow = _averaged(np.asarray(grey), left * across, right * across, shape[1])
    cells = _averaged(narrow.T, top * down, bottom * down, shape[0]).T / 255
    return np.ascontiguousarray(cells[:, ::-1] if flip else cells, dtype=np.float32)


def _averaged(rows: npt.NDArray[np.generic], start: float, end: float, cells: int) -> npt.NDArray[np.float64]:
    """(n, length) -> (n, cells): means over equal parts of [start, end], whose borders may cut an element."""
    edges = np.clip(np.linspace(start, end, cells + 1), 0, rows.shape[1])
    whole = np.minimum(edges.astype(np.int64), rows.shape[1] - 1)
    summed = np.cumsum(rows, axis=1, dtype=np.uint32 if rows.dtype == np.uint8 else np.float64)
    before = np.where(whole > 0, summed[:, np.maximum(whole - 1, 0)], 0).astype(np.float64)
    sums: npt.NDArray[np.float64] = before + (edges - whole) * rows[:, whole]
    return np.diff(sums, axis=1) / ((end - start) / cells)
