"""The audit of pictures by their looks: copies, leaks, and what makes a picture worse to learn from.

Pictures without looks, as in a dataset whose headers only were read, have no faults.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from finetune.data.audit import Audit, auditing
from finetune.data.example import Example
from finetune.data.folder import MAX_ASPECT, MIN_SIDE_PX, Rejected, Rules
from finetune.data.images.borders import Box
from finetune.data.images.buckets import Size
from finetune.data.images.colours import Colour
from finetune.data.images.looks import Looks, looks_table, unpacked_looks, without_borders
from finetune.data.quality.caption_report import CaptionReport, caption_report
from finetune.data.quality.class_images import ClassLeak, class_leaks
from finetune.data.quality.similar import likenesses
from finetune.data.quality.thresholds import USUAL_THRESHOLDS, AuditThresholds
from finetune.data.record import Seen
from finetune.data.text.wording import CaptionWords
from finetune.events import Event

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
"""levels of a channel by which plain grounds differ, or what edges that are patterned are on average"""
_FEW, _FEW_PLACES = 3, 5
"""pictures from which on one background is no chance: plain, and patterned"""
_EDGES = np.pad(np.zeros((2, 2), bool), 1, constant_values=True)
"""those of 4 x 4 parts"""


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
    """On average, where it is patterned."""
    patterned: bool = False


@dataclass(frozen=True)
class AuditFindings:
    """What the audit of looks and captions found. `left_out` and `cropped` are what `prepare` does when it fixes."""

    thresholds: AuditThresholds
    resolution: int
    pictures: Mapping[str, Seen]
    faults: Mapping[str, tuple[Fault, ...]]
    """By the name of the picture, in its order; none of sound ones."""
    groups: tuple[LookAlikes, ...]
    background: OneGround | None
    captions: CaptionReport
    left_out: tuple[Rejected, ...]
    cropped: Mapping[str, Box]
    """Picture -> what is left of it."""
    class_images: tuple[ClassLeak, ...] = ()
    """Of a prior, where its folder was compared."""

    def of_kind(self, kind: FaultKind) -> dict[str, str]:
        """Picture -> detail."""
        return {name: fault.detail for name, faults in self.faults.items() for fault in faults if fault.kind == kind}

    def looks(self, name: str) -> Looks | None:
        """None: the picture was not decoded."""
        return unpacked_looks(packed) if (packed := self.pictures[name].looks) else None


def find_faults(audit: Audit, resolution: int, thresholds: AuditThresholds = USUAL_THRESHOLDS) -> AuditFindings:
    """resolution: in px, that is trained at."""
    shown = [e for e in audit.used if audit.pictures[e.name].looks]
    groups = tuple(_groups(shown, audit.pictures, int(thresholds.similar)))
    held_out = {e.name for e in shown if e.attributes.held_out}
    left_out = tuple(_copies(groups, held_out))
    faults: dict[str, tuple[Fault, ...]] = {}
    copies = {r.file: Fault("leak" if r.reason == "leak" else "near duplicate", r.detail) for r in left_out}
    cropped: dict[str, Box] = {}
    for example in shown:
        own, looks = [copies[example.name]] if example.name in copies else [], _looks(example, audit.pictures)
        own += _own_faults(example.size, looks, resolution, thresholds)
        if own:
            faults[example.name] = tuple(own)
        if any(fault.kind == "border" for fault in own) and example.name not in copies:
            box = without_borders(example.size, looks)
            if example.mask is None and _is_usable(box):
                cropped[example.name] = box
    words = CaptionWords(audit.card.trigger, audit.card.class_word, kind=audit.card.kind)
    return AuditFindings(
        thresholds, resolution, audit.pictures, faults, groups,
        _background(shown, audit.pictures, thresholds.background),
        caption_report(audit.used, words, thresholds.fused), left_out, cropped,
    )  # fmt: skip


def _looks(example: Example, pictures: Mapping[str, Seen]) -> Looks:
    return unpacked_looks(pictures[example.name].looks)


def comparing(
    audit: Audit, class_images: Path, thresholds: AuditThresholds
) -> Generator[Event, None, tuple[ClassLeak, ...]]:
    """The class images of a folder, whatever is wrong with it otherwise, that an image of the audit shows.

    Raises:
        DataError: there is no such folder.
    """
    classes = yield from auditing(class_images, CaptionWords(allow_uncaptioned=True), Rules())
    training, shown = ({e.name: one.pictures[e.name].looks for e in one.used} for one in (audit, classes))
    return class_leaks(training, shown, thresholds.similar)


# --- copies ---------------------------------------------------------------------------------------------------------


def _groups(examples: Sequence[Example], pictures: Mapping[str, Seen], most: int) -> Iterator[LookAlikes]:
    """The best of each group is held out where one of them is, then the one with the most detail."""
    order = sorted(examples, key=lambda e: _worth(e, pictures[e.name]), reverse=True)
    held_out = frozenset(number for number, e in enumerate(order) if e.attributes.held_out)
    table = looks_table([pictures[e.name].looks for e in order])
    members: dict[int, list[Member]] = {}
    for example, like in zip(order, likenesses(table["fingerprint"], table["cells"], most, held_out), strict=True):
        if like:
            members.setdefault(like.of, []).append(Member(example.name, like.distance, like.mirrored))
    yield from (LookAlikes(order[best].name, tuple(others)) for best, others in sorted(members.items()))


def _worth(example: Example, seen: Seen) -> tuple[bool, float, bool, int]:
    looks = unpacked_looks(seen.looks)
    left, top, right, bottom = without_borders(example.size, looks)
    blown = looks.detail if looks.detail >= USUAL_THRESHOLDS.upscaled else 1
    area = (right - left) * (bottom - top) / blown**2 * (_BORDERED if any(looks.borders) else 1)
    return example.attributes.held_out, area, example.origin == "written", seen.file_bytes


def _copies(groups: Sequence[LookAlikes], held_out: set[str]) -> Iterator[Rejected]:
    """Of pictures that look alike one stays, and where that is held out none to train on."""
    for best, others in groups:
        for name, _, mirrored in others:
            leaks = best in held_out and name not in held_out
            what = f"{'the held-out ' if leaks else ''}{best}"
            yield Rejected(name, "leak" if leaks else "near duplicate", looks_like(what, mirrored))


def looks_like(what: str, mirrored: bool) -> str:
    """That a picture looks like another."""
    return f"{what} mirrored" if mirrored else f"like {what}"


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


def _background(examples: Sequence[Example], pictures: Mapping[str, Seen], share: float) -> OneGround | None:
    """One ground behind all pictures that have no mask: plain, or patterned and of one colour on average."""
    bare = looks_table([pictures[e.name].looks for e in examples if e.mask is None])
    plain = bare["ground"][bare["flatness"] >= 255 * _FLAT]
    if len(bare) >= _FEW and (found := _one_colour(plain, share * len(bare))):
        return OneGround(found[0], len(bare), found[1])
    patterned = bare["cells"][:, _EDGES].mean(axis=1)
    if len(bare) >= _FEW_PLACES and (found := _one_colour(patterned, share * len(bare))):
        return OneGround(found[0], len(bare), found[1], patterned=True)
    return None


def _one_colour(colours: npt.NDArray[np.number[Any]], least: float) -> tuple[int, Colour] | None:
    """(how many of (n, 3) colours are about the usual one, that one); None: fewer than `least`."""
    if len(colours) < least:
        return None
    usual = np.median(colours, axis=0)
    number = int(np.count_nonzero(np.abs(colours - usual).max(axis=1) <= _SAME_GROUND))
    red, green, blue = (int(channel) for channel in usual)
    return (number, (red, green, blue)) if number >= least else None
