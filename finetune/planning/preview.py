"""How the pictures of a folder would be trained: at which size, and what of their captions a base reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune import families
from finetune.data import dataset
from finetune.data.audit import Audit
from finetune.data.dataset import Placed
from finetune.data.images.buckets import Bucket, plan_buckets, usual_stride
from finetune.data.text.captions import CaptionNote
from finetune.planning.trigger_case import case_notice
from finetune.recipe import bounds

RESOLUTION_PX = 512
MUCH_CROPPED = 0.25
"""the share of a picture"""
SEEN_ENLARGED = 1.05
"""the factor from which on a picture is upscaled so that it is worth a word"""


class Previewed(NamedTuple):
    """An image as it would be trained on; tokens are None where no base was named."""

    placed: Placed
    tokens: int | None
    """Of the longest of its captions."""
    truncated: str
    """The end of that caption that the base does not read."""

    @property
    def notable(self) -> bool:
        """Whether it should be looked at among very many."""
        example, _, loss, _ = self.placed
        return bool(self.truncated) or not example.caption or loss > MUCH_CROPPED


@dataclass(frozen=True)
class Preview:
    base: str | None
    resolution: int
    stride: int
    rows: Sequence[Previewed]
    trigger_case: str = ""
    """A sentence on captions that have the trigger in another case."""

    @property
    def notes(self) -> list[CaptionNote]:
        scaled = [
            CaptionNote(r.placed.example.name, f"upscaled {r.placed.enlargement:.1f} times")
            for r in self.rows
            if r.placed.enlargement >= SEEN_ENLARGED
        ]
        lost = [
            CaptionNote(r.placed.example.name, f"caption too long: {r.truncated!r} is lost")
            for r in self.rows
            if r.truncated
        ]
        case = [CaptionNote("", self.trigger_case)] if self.trigger_case else []
        return scaled + lost + case


class TrainedSize(NamedTuple):
    """A size that is trained at, and its pictures."""

    bucket: Bucket
    pictures: int
    mean_loss: float
    """the share that is cropped, in [0, 1)"""
    most_loss: float


def preview(found: Audit, base: str | None, resolution: int | None, max_aspect: float) -> Preview:
    """The pictures of an audit at the resolution in px; None: the base's, else 512.

    Raises:
        InputError: a number that a recipe may not have. BaseError: the base cannot be read.
        DataError: no bucket has that resolution.
    """
    bounds.check("data.resolution", resolution, "resolution")
    bounds.check("data.max_aspect", max_aspect, "max_aspect")
    facts = families.detect(base) if base else None
    counter = families.tokenizer(base) if base else None
    px = resolution or (facts.resolution if facts else RESOLUTION_PX)
    stride = facts.stride if facts else usual_stride(px)
    placed = dataset.assign_buckets(found.used, plan_buckets(px * px, stride, max_aspect))
    counts = [_longest(counter, p.example.wordings or (p.example.caption,)) for p in placed]
    rows = [Previewed(p, *count) for p, count in zip(placed, counts, strict=True)]
    case = case_notice([e.caption for e in found.used], found.card.trigger, counter.same if counter else None)
    return Preview(base, px, stride, rows, case)


def _longest(counter: families.TokenCounter | None, captions: Sequence[str]) -> tuple[int | None, str]:
    """(tokens, what is lost) of the caption with the most tokens."""
    if counter is None:
        return None, ""
    return max((counter.lost(caption) for caption in captions), key=lambda found: found[0])


def by_text(notes: Iterable[CaptionNote]) -> dict[str, list[str]]:
    """Each remark with the files that it is on; of a remark on the whole dataset none."""
    grouped: dict[str, list[str]] = {}
    for note in notes:
        grouped.setdefault(note.text, []).extend([note.file] if note.file else [])
    return grouped


def trained_sizes(preview: Preview) -> list[TrainedSize]:
    """The sizes that are trained at, from the tallest to the widest."""
    losses: dict[Bucket, list[float]] = {}
    for row in preview.rows:
        losses.setdefault(row.placed.bucket, []).append(row.placed.crop_loss)
    return [
        TrainedSize(bucket, len(some), sum(some) / len(some), max(some))
        for bucket, some in sorted(losses.items(), key=lambda one: (one[0].width / one[0].height, one[0]))
    ]
