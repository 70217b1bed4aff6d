"""What a dataset's captions have in common: words that are learnt with the trigger, and captions that repeat."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from finetune.data.example import Example
from finetune.data.text.wording import CaptionWords

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_SAY_NOTHING = frozenset(
    "a an the this that its it of on in at by with and or to from for is are as near next photo photograph picture "
    "image shot view close up close-up background style".split()
)
"""words that many captions have, and that show nothing"""
_LEAST = 3
"""captions from which on a word is in all of them for a reason"""


class CaptionReport(NamedTuple):
    """Captions from the template are left out: they repeat by design."""

    captions: int
    distinct: int
    fused: tuple[tuple[str, int], ...]
    """Words beside the trigger and the class word that (nearly) every caption has, and how many have each."""
    repeated: tuple[tuple[str, int], ...]
    """Captions of several pictures, and of how many, the most frequent first."""

    @property
    def repeating(self) -> int:
        """How many pictures have the caption of another."""
        return sum(number for _, number in self.repeated)


def caption_report(examples: Sequence[Example], words: CaptionWords, share: float) -> CaptionReport:
    """share: of the captions, from which on a word is fused with the trigger."""
    captions = Counter(e.caption for e in examples if e.origin != "template" and e.caption)
    number = captions.total()
    own = {w.lower() for word in (words.trigger, words.class_word) if word for w in (word, *word.split())}
    having: Counter[str] = Counter()
    for caption, times in captions.items():
        for word in {w.lower() for w in _WORD.findall(caption)}:
            having[word] += times
    fused = [
        (word, n)
        for word, n in having.most_common()
        if number >= _LEAST and len(captions) > 1 and n >= share * number and word not in own | _SAY_NOTHING
    ]
    repeated = [(caption, n) for caption, n in captions.most_common() if n > 1]
    return CaptionReport(number, len(captions), tuple(fused), tuple(repeated))


def caption_sentences(report: CaptionReport, trigger: str | None) -> list[str]:
    """What is worth a word."""
    sentences = []
    subject = repr(trigger) if trigger else "the subject"
    if report.fused:
        least = min(n for _, n in report.fused)
        where = "every caption has" if least == report.captions else f"{least} of {report.captions} captions have"
        sentences.append(
            f"{where} {_listed([w for w, _ in report.fused])}: it is learnt as part of {subject}; name in captions "
            "only what differs from picture to picture"
        )
    if report.repeated and report.distinct > 1:
        caption, number = report.repeated[0]
        more = f", other repeated captions: {len(report.repeated) - 1}" if len(report.repeated) > 1 else ""
        sentences.append(
            f"{report.repeating} of {report.captions} images share a caption ({number} have {caption!r}{more}): name "
            "in each caption what only its picture shows"
        )
    return sentences


def _listed(words: Sequence[str]) -> str:
    shown = [repr(word) for word in words[:5]] + ([f"{len(words) - 5} more"] if len(words) > 5 else [])
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
