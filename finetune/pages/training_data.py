"""What a run learnt from, as its page shows it: the pictures as training crops them, captions, origins, licence."""

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from finetune.data.buckets import fit, plan_buckets, usual_stride
from finetune.data.dataset import Placed, assign_buckets, read_dataset
from finetune.data.decode import open_rgb
from finetune.data.diagnose import Unusable
from finetune.data.example import Dataset
from finetune.errors import Action, DataError, action
from finetune.pages.html import inlined
from finetune.reporting.history import History
from finetune.resources import data_path

THUMBNAIL_PX, MOST_THUMBNAILS = 144, 48
_ORIGINS = {
    "written": "written by a person", "filename": "taken from the file's name", "model": "written by a model",
    "template": "made from a template, as nobody wrote one",
}  # fmt: skip


class Thumbnail(NamedTuple):
    """A training picture as it is cropped; source is None where it can no longer be read."""

    name: str
    source: Markup | None
    width: int
    height: int
    caption: str
    wordings: tuple[str, ...]
    origin: str
    cropped: str
    """how much of it is cut off, such as "12 %"; empty: nothing worth telling"""


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
    shown = [_thumbnail(one) for one in placed[:MOST_THUMBNAILS]]
    origins = [f"{n} {_ORIGINS[one]}" for one, n in Counter(e.origin for e in found.examples).most_common()]
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
def _thumbnail(placed: Placed) -> Thumbnail:
    example, bucket = placed.example, placed.bucket
    try:
        source = inlined(fit(open_rgb(example.path), bucket), THUMBNAIL_PX)
    except Unusable:
        source = None
    cropped = f"{placed.crop_loss:.0%}" if placed.crop_loss >= 0.005 else ""
    return Thumbnail(example.name, source, bucket.width, bucket.height, example.caption, example.wordings,
                     _ORIGINS[example.origin], cropped)  # fmt: skip
