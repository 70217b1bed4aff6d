"""A dataset as training reads it, and the bucket of each of its examples."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.choices import CaptionsFrom
from finetune.data import folder
from finetune.data.audit import auditing, complaint, prepared_card
from finetune.data.example import Dataset, Example
from finetune.data.folder import Rules
from finetune.data.images.buckets import Bucket, Size, choose_bucket, crop_loss, enlargement
from finetune.data.text import captions
from finetune.data.text.wording import CaptionWords
from finetune.errors import DataError
from finetune.events import Event, unheard


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
        DataError: names every problem, and the files that cannot be used: none is left out in silence.
    """
    words = captions.clean_words(trigger, class_word, template, "", captions_from, allow_uncaptioned)
    return unheard(reading_dataset(path, words))


def reading_dataset(path: Path, words: CaptionWords) -> Generator[Event, None, Dataset]:
    """`read_dataset`, telling how far it is where that takes long."""
    prepared = prepared_card(folder.locate_images(path)) is not None
    report = yield from auditing(path, words, Rules(decode=not prepared))
    if report.problems or report.rejected:
        raise DataError(*complaint(path, report))
    return Dataset(report.root, report.used, report.card.trigger, report.card.class_word, report.card, prepared,
                   report.understood)  # fmt: skip


def assign_buckets(examples: Sequence[Example], buckets: Sequence[Bucket]) -> list[Placed]:
    """Each example with its bucket."""
    known: dict[Size, tuple[Bucket, float, float]] = {}
    placed = []
    for example in examples:
        size = example.size
        if size not in known:
            bucket = choose_bucket(size, buckets)
            known[size] = bucket, crop_loss(size, bucket), enlargement(size, bucket)
        placed.append(Placed(example, *known[size]))
    return placed
