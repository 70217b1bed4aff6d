"""The audit of pictures by their looks: copies, leaks, and what makes a picture worse to learn from.

Pictures without looks, as in a dataset whose headers only were read, have no faults.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from finetune.data.audit import Audit
from finetune.data.example import Example
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rejected
from finetune.data.images.borders import Box
from finetune.data.images.buckets import Size
from finetune.data.images.colours import Colour
from finetune.data.images.looks import Looks, unpacked_looks, without_borders
from finetune.data.quality.caption_report import CaptionReport, caption_report
from finetune.data.quality.similar import Fingerprint, likenesses
from finetune.data.quality.thresholds import USUAL_THRESHOLDS, AuditThresholds
from finetune.data.text.wording import CaptionWords

FaultKind = Literal["leak", "near duplicate", "blurred", "upscaled", "border", "colour cast"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
"""the most important first"""
USUAL_RESOLUTION = 512
"""in px, where nobody says what is trained at"""
_BORDERED = 0.9
"""what a px is worth of a picture that has to be cropped first"""
_FLAT = 0.75
"""flatness from which on a picture's edges are one ground"""
_SAME_GROUND = 24
"""levels of a channel"""
_FEW = 3
"""pictures from which on one background is no chance"""


class Fault(NamedTuple):
    kind: FaultKind
    detail: str
    """Of this picture, such as "like a.jpg"."""


class Member(NamedTuple):
    name: str
    distance: int
    """Bits of 64 in which its fingerprint differs from that of the best."""
    mirrored: bool


class LookAlikes(NamedTuple):
    """Pictures that look alike."""

    best: str
    others: tuple[Member, ...]


class OneGround(NamedTuple):
    """One background of (nearly) all pictures."""

    images: int
    of: int
    colour: Colour


@dataclass(frozen=True)
class AuditFindings:
    """What the audit of looks and captions found. `left_out` and `cropped` are what `prepare` does when it fixes."""

    thresholds: AuditThresholds
    resolution: int
    looks: Mapping[str, Looks]
    faults: Mapping[str, tuple[Fault, ...]]
    """By the name of the picture, in its order; none of sound ones."""
    groups: tuple[LookAlikes, ...]
    background: OneGround | None
    captions: CaptionReport
    left_out: tuple[Rejected, ...]
    cropped: Mapping[str, Box]
    """Picture -> what is left of it."""

    def of_kind(self, kind: FaultKind) -> dict[str, str]:
        """Picture -> detail."""
        return {name: fault.detail for name, faults in self.faults.items() for fault in faults if fault.kind == kind}


def find_faults(audit: Audit, resolution: int, thresholds: AuditThresholds = USUAL_THRESHOLDS) -> AuditFindings:
    """resolution: in px, that is trained at."""
    looks = {e.name: unpacked_looks(audit.looks[e.name]) for e in audit.used if e.name in audit.looks}
    seen = [e for e in audit.used if e.name in looks]
    groups = tuple(_groups(seen, looks, int(thresholds.similar)))
    held_out = {e.name for e in seen if e.attributes.held_out}
    left_out = tuple(_copies(groups, held_out))
    faults: dict[str, tuple[Fault, ...]] = {}
    copies = {r.file: Fault("leak" if r.reason == "leak" else "near duplicate", r.detail) for r in left_out}
    cropped: dict[str, Box] = {}
    for example in seen:
        own = [copies[example.name]] if example.name in copies else []
        own += _own_faults(example.size, looks[example.name], resolution, thresholds)
        if own:
            faults[example.name] = tuple(own)
        if any(fault.kind == "border" for fault in own) and example.name not in copies:
            box = without_borders(example.size, looks[example.name])
            if example.mask is None and _is_usable(box):
                cropped[example.name] = box
    words = CaptionWords(audit.card.trigger, audit.card.class_word, kind=audit.card.kind)
    return AuditFindings(
        thresholds, resolution, looks, faults, groups, _background(seen, looks, thresholds.background),
        caption_report(audit.used, words, thresholds.fused), left_out, cropped,
    )  # fmt: skip


# --- copies ---------------------------------------------------------------------------------------------------------


def _groups(examples: Sequence[Example], looks: Mapping[str, Looks], most: int) -> Iterator[LookAlikes]:
    """The best of each group is held out where one of them is, then the one with the most detail."""
    order = sorted(examples, key=lambda e: _worth(e, looks[e.name]), reverse=True)
    prints = [Fingerprint(looks[e.name].fingerprint, looks[e.name].cells) for e in order]
    held_out = frozenset(number for number, e in enumerate(order) if e.attributes.held_out)
    members: dict[int, list[Member]] = {}
    for example, like in zip(order, likenesses(prints, most, held_out), strict=True):
        if like:
            members.setdefault(like.of, []).append(Member(example.name, like.distance, like.mirrored))
    yield from (LookAlikes(order[best].name, tuple(others)) for best, others in sorted(members.items()))


def _worth(example: Example, looks: Looks) -> tuple[bool, float, bool, int]:
    left, top, right, bottom = without_borders(example.size, looks)
    blown = looks.detail if looks.detail >= USUAL_THRESHOLDS.upscaled else 1
    area = (right - left) * (bottom - top) / blown**2 * (_BORDERED if any(looks.borders) else 1)
    return example.attributes.held_out, area, example.origin == "written", _bytes(example)


def _bytes(example: Example) -> int:
    try:
        return example.path.stat().st_size
    except OSError:  # gone since: then it is as good as any
        return 0


def _copies(groups: Sequence[LookAlikes], held_out: set[str]) -> Iterator[Rejected]:
    """Of pictures that look alike one stays, and where that is held out none to train on."""
    for best, others in groups:
        for name, _, mirrored in others:
            leaks = best in held_out and name not in held_out
            what = f"{'the held-out ' if leaks else ''}{best}"
            detail = f"{what} mirrored" if mirrored else f"like {what}"
            yield Rejected(name, "leak" if leaks else "near duplicate", detail)


# --- one picture ----------------------------------------------------------------------------------------------------


def _own_faults(size: Size, looks: Looks, resolution: int, thresholds: AuditThresholds) -> Iterator[Fault]:
    left, top, right, bottom = without_borders(size, looks)
    width, height = right - left, bottom - top
    side, detail = (width * height) ** 0.5, looks.detail
    held = f"{round(width / detail)} x {round(height / detail)}"
    if min(resolution, side) * detail / side >= thresholds.blurred:
        yield Fault("blurred", f"as sharp as {held} px")
    elif detail >= thresholds.upscaled and side / detail < resolution:
        yield Fault("upscaled", f"{width} x {height} px hold the detail of {held}")
    if bars := _bars(size, looks, thresholds.border):
        yield Fault("border", bars)
    if looks.cast >= thresholds.cast:
        yield Fault("colour cast", "even its greys are tinted")


def _bars(size: Size, looks: Looks, least: float) -> str:
    """The borders that are wide enough, each with its width in px."""
    sides = zip(("left", "top", "right", "bottom"), looks.borders, (*size, *size), strict=True)
    wide = [(name, px) for name, px, side in sides if px >= max(1, least * side)]
    return ", ".join(f"{name} {px} px" for name, px in wide)


def _is_usable(box: Box) -> bool:
    width, height = box[2] - box[0], box[3] - box[1]
    return min(width, height) >= MIN_SIDE_PX and max(width, height) <= MAX_ASPECT * min(width, height)


# --- all pictures ---------------------------------------------------------------------------------------------------


def _background(examples: Sequence[Example], looks: Mapping[str, Looks], share: float) -> OneGround | None:
    """The colour of one flat ground behind all pictures that have no mask."""
    bare = [looks[e.name] for e in examples if e.mask is None]
    flat = np.array([one.ground for one in bare if one.flatness >= _FLAT], np.int16)
    if len(bare) < _FEW or len(flat) < share * len(bare):
        return None
    middle = np.median(flat, axis=0)
    number = int(np.count_nonzero(np.abs(flat - middle).max(axis=1) <= _SAME_GROUND))
    if number < share * len(bare):
        return None
    red, green, blue = (int(channel) for channel in middle)
    return OneGround(number, len(bare), (red, green, blue))
