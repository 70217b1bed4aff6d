"""What a dataset is: its examples, and the card of a prepared one."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from finetune import __version__
from finetune.data.attributes import NO_ATTRIBUTES, Attributes, cells_of
from finetune.data.folder import Rejected
from finetune.data.images.buckets import Size
from finetune.data.rights.licences import Rights
from finetune.data.rights.provenance import LicenceSum, sums
from finetune.data.text import captions
from finetune.data.text.caption_files import CaptionSource
from finetune.data.text.captions import Coverage
from finetune.data.text.wording import CaptionOrigin, CaptionWords, DatasetKind

CARD = "dataset.toml"


class MaskFile(NamedTuple):
    """A grey picture that says what of an image is learnt: white is, black is not."""

    path: Path
    digest: str
    """The SHA-256 of the file's bytes."""
    size: Size
    """The size of the upright mask."""
    orientation: int = 1
    """The EXIF orientation of its image, where the mask was drawn before that was applied; 1: none."""
    alpha: bool = False
    """It is the transparency of an image, which has no file of its own until it is prepared."""


class Example(NamedTuple):
    """One image to train on."""

    path: Path
    name: str
    """The posix path relative to the dataset's root, which is the id of the sample."""
    caption: str
    """The final caption that is trained on."""
    digest: str
    """The SHA-256 of the file's bytes."""
    size: Size
    """The size of the upright image."""
    role: Literal["instance", "prior"] = "instance"
    weight: float = 1.0
    controls: "tuple[Example, ...]" = ()
    """The control images that an editing base reads beside the caption. Their names are unique in the dataset."""
    origin: CaptionOrigin = "written"
    wordings: tuple[str, ...] = ()
    """The wordings that training shows by turns, the caption among them; empty where there is only the caption."""
    attributes: Attributes = NO_ATTRIBUTES
    mask: MaskFile | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """All that it has of its own; wordings of these may be shown as well."""
        return (self.caption, *self.attributes.captions)


class DatasetCard(BaseModel):
    """dataset.toml: what a prepared dataset is, and what preparing it left out or changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    tool: str = f"finetune {__version__}"
    trigger: str | None = None
    class_word: str | None = None
    kind: DatasetKind = ""
    license: str = ""
    """Of the pictures that have none of their own."""
    author: str = ""
    """The same."""
    require_license: tuple[str, ...] = ()
    """Licences that were asked for: every picture has one of them, in its own row."""
    licenses: dict[str, int] = {}
    """Pictures by licence, "" for none, when it was prepared."""
    source: str = ""
    background: str = "white"
    template: str | None = None
    """The person's own template, where one was given."""
    captions: CaptionSource = "none"
    allow_uncaptioned: bool = False
    """Captions that say nothing of the pictures were allowed."""
    images: int = 0
    seen: int = 0
    changes: dict[str, int] = {}
    rejected: tuple[Rejected, ...] = ()
    """The first thousand; all are `seen` less `images`."""


@dataclass(frozen=True)
class Dataset:
    """A dataset that passed its audit: everything that training reads."""

    root: Path
    examples: tuple[Example, ...]
    trigger: str | None
    class_word: str | None
    card: DatasetCard
    prepared: bool
    understood: tuple[str, ...] = ()
    """What was made of files and folders that are as other trainers have them, a sentence each."""

    @property
    def words(self) -> CaptionWords:
        """What the captions are written with."""
        card = self.card
        return CaptionWords(self.trigger, self.class_word, card.template, card.kind,
                            allow_uncaptioned=card.allow_uncaptioned)  # fmt: skip

    @property
    def kind(self) -> DatasetKind:
        return self.card.kind

    @property
    def source(self) -> str:
        return self.card.source

    @property
    def license(self) -> str:
        return self.card.license

    @property
    def licenses(self) -> tuple[LicenceSum, ...]:
        """Pictures by licence."""
        return sums((e.attributes for e in self.examples), self.rights)

    @property
    def rights(self) -> Rights:
        card = self.card
        return Rights(card.license, card.author, card.require_license)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted (digest, captions, controls, attributes, mask): the same images, captions and masks,
        wherever they lie."""
        pairs = sorted(
            (e.digest, e.caption, *e.wordings, *(c.digest for c in e.controls), *_told(e)) for e in self.examples
        )
        return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()

    @property
    def masked(self) -> int:
        """How many images have a mask."""
        return sum(e.mask is not None for e in self.examples)

    @property
    def coverage(self) -> Coverage:
        return captions.coverage([caption for e in self.examples for caption in e.captions], self.trigger)


def _told(example: Example) -> list[str]:
    cells = cells_of(example.attributes._replace(mask=""))
    if example.mask:
        cells["mask"] = [example.mask.digest, example.mask.orientation]
    return [json.dumps(cells, ensure_ascii=False)] if cells else []
