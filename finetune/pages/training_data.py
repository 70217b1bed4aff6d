"""What a run learnt from, as its page shows it: the pictures as training crops them, captions, origins, licence."""

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from finetune.data.buckets import plan_buckets, usual_stride
from finetune.data.dataset import Placed, assign_buckets, read_dataset
from finetune.data.example import Dataset
from finetune.errors import Action, DataError, action
from finetune.pages.dataset import AUTHORS, cropped
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
    placed = _placed(history, found)
    shown = [_thumbnail(one, found.trigger) for one in placed[:MOST_THUMBNAILS]]
    origins = [f"{n} {AUTHORS[one]}" for one, n in Counter(e.origin for e in found.examples).most_common()]
    return TrainingData(
        str(path), "", len(placed), shown, len(placed) - len(shown), origins, found.license, found.source,
        found.trigger or "", found.class_word or "", crop, flip,
    )  # fmt: skip


@lru_cache(maxsize=4)
def _dataset(path: Path, trigger: str, class_word: str, uncaptioned: bool) -> Dataset:
    """Read once by a run, whose dataset does not change; a folder that has gone is looked for again."""
    return read_dataset(path, trigger=trigger or None, class_word=class_word or None, allow_uncaptioned=uncaptioned)


def _placed(history: History, found: Dataset) -> list[Placed]:
    """Each picture with the size that it is trained at."""
    said, record = history.recipe["data"], history.record
    px = int(said.get("resolution", 512))
    stride = record.get("stride")
    step = stride if isinstance(stride, int) and 0 < stride <= px else usual_stride(px)
    return assign_buckets(found.examples, plan_buckets(px * px, step, float(said.get("max_aspect", 2.0))))


@lru_cache(maxsize=256)
def _thumbnail(placed: Placed, trigger: str | None) -> Thumbnail:
    """Kept while a run writes its page again and again."""
    return Thumbnail(cropped(placed, THUMBNAIL_PX, trigger), placed.example.wordings)
