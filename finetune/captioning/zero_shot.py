"""Captions by a vocabulary: the name in each list that CLIP finds most like the picture. Zero-shot: nothing is trained.

Source: arXiv:2103.00020 section 3.1, with averaged phrases. Shapes: v views, d features, n, m names of lists.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune import resources as shipped
from finetune.captioning.captioner import Answer
from finetune.captioning.views import View, views_of
from finetune.captioning.vocabulary import POCKET_NAME, JudgedTogether, Vocabulary, put_together
from finetune.data.images import decode
from finetune.data.text.wording import CaptionWords
from finetune.errors import DataError
from finetune.evaluation.similarity import FeatureExtractor

LOOKED_AT = 24
"""pictures of which a few must be of the vocabulary's world"""
OWN_WEIGHT = 2.0
"""of the picture on its own ground, beside each other ground"""


class Judgement(NamedTuple):
    """The likeliest name of each list, and the cosine of the best phrase."""

    names: dict[str, str]
    fit: float


class ZeroShot:
    """Puts captions together from the names that a CLIP finds in a picture."""

    batch = 16

    def __init__(self, vocabulary: Vocabulary, words: CaptionWords, judge: str = "") -> None:
        """judge: the folder of a CLIP, or `pocket`; empty: the one that the vocabulary names.

        Raises:
            DataError: neither names one, or the vocabulary has no caption for what the pictures show.
            BaseError: the judge cannot be read.
        """
        self.vocabulary, self.words = vocabulary, words
        self.template = vocabulary.template(words)
        named = judge or vocabulary.judge
        if not named:
            raise DataError("the vocabulary names no judge", "give the folder of a CLIP model as `judge`")
        self.eyes = FeatureExtractor.load(shipped.EYES if named == POCKET_NAME else Path(named))
        wanted = set(vocabulary.slots(self.template))
        self.groups = [(group, self._read(group)) for group in vocabulary.groups() if wanted & set(group.lists)]
        self.scale = float(self.eyes.encoder.logit_scale.detach().exp())
        self.named = wanted - {vocabulary.ground_list()}

    def check(self, files: Sequence[Path]) -> None:
        """Whether the pictures are of the vocabulary's world: guesses at names are worse than no captions."""
        least = self.vocabulary.unknown_below
        if least is None or not self.named:
            return
        some = files[:: -(-len(files) // LOOKED_AT)]
        middle = median(one.fit for one in self._judge(some))
        if middle < least:
            raise DataError(
                f"the vocabulary does not cover these pictures: its best phrases score {middle:.2f} (median) on them, "
                f"and at least {least:.2f} on pictures that it covers; the captions would be guesses",
                "name the files after what they show (bell.png), or use `with_model` or `command`",
            )

    def __call__(self, files: Sequence[Path]) -> list[Answer]:
        return [self._answer(one) for one in self._judge(files)]

    def _answer(self, judged: Judgement) -> Answer:
        text = put_together(self.template, judged.names, self.words)
        least = self.vocabulary.unsure_below
        if least is not None and self.named and judged.fit < least:
            return Answer(text, "not sure")
        return Answer(text)

    def _read(self, group: JudgedTogether) -> Tensor:
        """(n, m, ..., d) of unit length: each combination of names in all phrases of the group, averaged."""
        names = [self.vocabulary.lists[one] for one in group.lists]
        slots = [dict(zip(group.lists, chosen, strict=True)) for chosen in product(*names)]
        read = [self.eyes.of_captions([phrase.format_map(chosen) for chosen in slots]) for phrase in group.phrases]
        return F.normalize(torch.stack(read).mean(0), dim=-1).reshape(*map(len, names), -1)

    def _judge(self, files: Sequence[Path]) -> list[Judgement]:
        colours = self.vocabulary.colours()
        looks = [views_of(decode.open_rgb(file), colours) for file in files]
        seen = self.eyes.of_pictures([one.picture for look in looks for one in look])
        parts = torch.split(seen, [len(look) for look in looks])
        return [self._of_one(look, features) for look, features in zip(looks, parts, strict=True)]

    def _of_one(self, look: Sequence[View], seen: Tensor) -> Judgement:
        names, fits = dict[str, str](), []
        for group, read in self.groups:
            found, fit = self._of_group(group.lists, read, look, seen)
            names |= found
            if self.named & set(group.lists):
                fits.append(fit)
        return Judgement(names, min(fits, default=1.0))

    def _of_group(
        self, lists: tuple[str, ...], read: Tensor, look: Sequence[View], seen: Tensor
    ) -> tuple[dict[str, str], float]:
        own = F.normalize(seen[[i for i, view in enumerate(look) if not view.ground]].mean(0), dim=0)
        cosines = torch.tensordot(read, own, 1)
        names = self._likeliest(lists, cosines)
        ground = self.vocabulary.ground_list()
        others = [i for i, view in enumerate(look) if view.ground]
        if ground not in lists or not others or len(lists) == 1:
            return names, float(cosines.max())
        # the object is the same on every ground, so what it is is judged on all of them
        along, known = lists.index(ground), self.vocabulary.lists[ground]
        total = OWN_WEIGHT * cosines.select(along, known.index(names[ground]))
        for i in others:
            total = total + torch.tensordot(read.select(along, known.index(look[i].ground)), seen[i], 1)
        total = total / (OWN_WEIGHT + len(others))
        rest = tuple(name for name in lists if name != ground)
        return {**self._likeliest(rest, total), ground: names[ground]}, float(total.max())

    def _likeliest(self, lists: Sequence[str], cosines: Tensor) -> dict[str, str]:
        """The name of each list that all phrases with it, together, make the likeliest."""
        found: Mapping[str, int] = {
            name: int((self.scale * cosines).movedim(i, 0).flatten(1).logsumexp(1).argmax())
            if cosines.ndim > 1
            else int(cosines.argmax())
            for i, name in enumerate(lists)
        }
        return {name: self.vocabulary.lists[name][index] for name, index in found.items()}
