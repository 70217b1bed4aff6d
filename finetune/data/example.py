"""What a dataset is: its examples, and the card of a prepared one."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from finetune import __version__
from finetune.data import captions
from finetune.data.buckets import Size
from finetune.data.caption_files import CaptionSource
from finetune.data.captions import Coverage, Kind
from finetune.data.folder import Rejected

CARD = "dataset.toml"


class Example(NamedTuple):
    """One image to train on."""

    path: Path
    name: str
    """posix path relative to the dataset's root: the sample's id"""
    caption: str
    """the final text, as trained on"""
    digest: str
    """SHA-256 of the file's bytes"""
    size: Size
    """after orientation"""
    role: Literal["instance", "prior"] = "instance"
    weight: float = 1.0
    controls: "tuple[Example, ...]" = ()
    """pictures that an editing base is shown beside the caption; their names are no other's"""


class DatasetCard(BaseModel):
    """dataset.toml: what a prepared dataset is, and what preparing it left out or changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    tool: str = f"finetune {__version__}"
    trigger: str | None = None
    class_word: str | None = None
    kind: Kind = ""
    license: str = ""
    source: str = ""
    background: str = "white"
    captions: CaptionSource = "none"
    images: int = 0
    seen: int = 0
    changes: dict[str, int] = {}
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Dataset:
    root: Path
    examples: tuple[Example, ...]
    trigger: str | None
    class_word: str | None
    card: DatasetCard
    prepared: bool

    @property
    def kind(self) -> Kind:
        return self.card.kind

    @property
    def source(self) -> str:
        return self.card.source

    @property
    def license(self) -> str:
        return self.card.license

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted (digest, caption, controls...): the same images and captions, wherever they lie."""
        pairs = sorted((e.digest, e.caption, *(c.digest for c in e.controls)) for e in self.examples)
        return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()

    @property
    def coverage(self) -> Coverage:
        return captions.coverage([e.caption for e in self.examples], self.trigger)
