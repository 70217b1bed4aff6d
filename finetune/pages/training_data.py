"""What a run learnt from, as its page shows it: the pictures as training crops them, captions, origins, licence."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from finetune.data.dataset import Placed, assign_buckets, read_dataset
from finetune.data.example import Dataset, Example
from finetune.data.images.buckets import plan_buckets, usual_stride
from finetune.errors import Action, DataError, action
from finetune.pages.dataset import AUTHORS, cropped
from finetune.planning.public import licenses_in_words
from finetune.recipe.resolved import ResolvedData
from finetune.reporting.history import History
from finetune.resources import data_path

THUMBNAIL_PX, MOST_THUMBNAILS = 144, 48


class Thumbnail(NamedTuple):
    """A training picture as it is cropped, its caption beneath; wordings: of a caption that has several."""

    figure: Markup
    wordings: tuple[str, ...]


class TrainingData(NamedTuple):
    """missing: why the pictures are not shown."""

    path: str
    missing: str
    number: int
    thumbnails: list[Thumbnail]
    left_out: int
    origins: list[str]
    license: str
    source: str
    trigger: str
    class_word: str
    crop: str
    flip: bool

    @property
    def listing(self) -> Action:
        """What lists them all."""
        return action("check", path=self.path)


def training_data(history: History) -> TrainingData | None:
    """None: the recipe says nothing of pictures."""
    said = history.recipe.get("data", {})
    if not said.get("path"):
        return None
    path = data_path(Path(str(said["path"])))
    trigger, class_word = (str(said.get(key) or "") for key in ("trigger", "class_word"))
    crop, flip = str(said.get("crop", "")), bool(said.get("flip"))
    try:
        found = _dataset(path, trigger, class_word, bool(said.get("allow_uncaptioned")))
    except DataError as e:
        return TrainingData(str(path), e.problem, 0, [], 0, [], "", "", trigger, class_word, crop, flip)
    masked = said.get("mask_outside", 0) != 1
    shown = [_thumbnail(one, found.trigger, masked) for one in _placed(history, found.examples[:MOST_THUMBNAILS])]
    number = len(found.examples)
    origins = [f"{n} {AUTHORS[one]}" for one, n in Counter(e.origin for e in found.examples).most_common()]
    return TrainingData(
        str(path), "", number, shown, number - len(shown), origins, licenses_in_words(found), found.source,
        found.trigger or "", found.class_word or "", crop, flip,
    )  # fmt: skip


def remember(said: ResolvedData, data: Dataset) -> None:
    """What a run has read by its recipe's [data] need not be read again for its page."""
    _KNOWN.clear()
    _KNOWN[data_path(said.path), said.trigger or "", said.class_word or "", said.allow_uncaptioned] = data


_KNOWN: dict[tuple[Path, str, str, bool], Dataset] = {}


def _dataset(path: Path, trigger: str, class_word: str, uncaptioned: bool) -> Dataset:
    """As the run of this process has it, else read now."""
    if known := _KNOWN.get((path, trigger, class_word, uncaptioned)):
        return known
    return _read(path, trigger, class_word, uncaptioned)


@lru_cache(maxsize=4)
def _read(path: Path, trigger: str, class_word: str, uncaptioned: bool) -> Dataset:
    """Read once, as the dataset of a run does not change; a folder that has gone is looked for again."""
    return read_dataset(path, trigger=trigger or None, class_word=class_word or None, allow_uncaptioned=uncaptioned)


def _placed(history: History, examples: Sequence[Example]) -> list[Placed]:
    """Each picture with the size that it is trained at."""
    said, record = history.recipe["data"], history.record
    px = int(said.get("resolution", 512))
    stride = record.get("stride")
    step = stride if isinstance(stride, int) and 0 < stride <= px else usual_stride(px)
    return assign_buckets(examples, plan_buckets(px * px, step, float(said.get("max_aspect", 2.0))))


@lru_cache(maxsize=256)
def _thumbnail(placed: Placed, trigger: str | None, masked: bool) -> Thumbnail:
    """Kept while a run writes its page again and again."""
    return Thumbnail(cropped(placed, THUMBNAIL_PX, trigger, masked), placed.example.wordings)
