"""Class images of a prior that a training image shows: they would teach the class word what the trigger is for."""

from collections.abc import Generator, Mapping
from typing import NamedTuple

from finetune.data import examine
from finetune.data.example import Dataset
from finetune.data.images.looks import looks_table
from finetune.data.quality.similar import nearest_known
from finetune.data.quality.thresholds import USUAL_THRESHOLDS
from finetune.events import Event


class ClassLeak(NamedTuple):
    """A class image that looks like a training image."""

    file: str
    like: str
    mirrored: bool


def class_leaks(
    training: Mapping[str, bytes], classes: Mapping[str, bytes], most: float = USUAL_THRESHOLDS.similar
) -> tuple[ClassLeak, ...]:
    """Both: name -> packed looks. most: bits by which fingerprints of copies differ."""
    table, names = looks_table([*training.values(), *classes.values()]), list(training)
    likes = nearest_known(table["fingerprint"], table["cells"], int(most), known=len(names))
    alike = zip(classes, likes, strict=True)
    return tuple(ClassLeak(file, names[like.of], like.mirrored) for file, like in alike if like)


def finding_class_leaks(data: Dataset, classes: Dataset) -> Generator[Event, None, tuple[ClassLeak, ...]]:
    """Decodes those of their pictures whose looks are not known yet."""
    training = yield from examine.looks_of(data.root, [e.name for e in data.examples])
    shown = yield from examine.looks_of(classes.root, [e.name for e in classes.examples])
    return class_leaks(training, shown)
