"""A dataset as training reads it, and the bucket of each of its examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune import reading
from finetune.choices import CaptionsFrom
from finetune.data import captions, folder
from finetune.data.audit import audit_folder, complaint
from finetune.data.buckets import Bucket, choose_bucket, crop_loss, enlargement
from finetune.data.example import CARD, Dataset, Example
from finetune.data.folder import Rules
from finetune.errors import DataError


class Placed(NamedTuple):
    """An example and its bucket, the size that it is trained at."""

    example: Example
    bucket: Bucket
    crop_loss: float
    """The share of the image's area that is cropped, in [0, 1)."""
    enlargement: float
    """The factor of resizing; above 1 the image is upscaled."""


def read_dataset(
    path: Path,
    *,
    trigger: str | None = None,
    class_word: str | None = None,
    template: str | None = None,
    captions_from: CaptionsFrom = "auto",
    allow_uncaptioned: bool = False,
) -> Dataset:
    """Reads a prepared folder (image headers and digests only), or audits a raw one in full.

    Raises:
        DataError: names every problem, and every file that cannot be used: none is left out in silence.
    """
    prepared = reading.is_file(folder.locate_images(path) / CARD)
    words = captions.clean_words(trigger, class_word, template, "", captions_from, allow_uncaptioned)
    report = audit_folder(path, words, Rules(decode=not prepared))
    if report.problems or report.rejected:
        raise DataError(*complaint(path, report))
    return Dataset(report.root, report.used, report.card.trigger, report.card.class_word, report.card, prepared)


def assign_buckets(examples: Sequence[Example], buckets: Sequence[Bucket]) -> list[Placed]:
    """Each example with its bucket."""
    placed = []
    for example in examples:
        bucket = choose_bucket(example.size, buckets)
        loss, scale = crop_loss(example.size, bucket), enlargement(example.size, bucket)
        placed.append(Placed(example, bucket, loss, scale))
    return placed
